import { expect, setDefaultTimeout, spyOn, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { openLibrary, selectDevices, ZmqContext, type ZmqSocket } from '@ckpt/cuda'
import { TestDir } from '../registry/testing/fixture.ts'
import { RemoteSources } from './remote-sources.ts'
import { KeptCommunicator } from './kept-communicator.ts'
import { NO_RUN, type RankEvent } from './messages.ts'
import type { KeptRun } from './quarantine.ts'
import { rehearse } from './rehearsal.ts'
import { Ring } from './ring.ts'

setDefaultTimeout(60_000)

interface Stage {
  readonly path: string
  readonly kept: KeptRun[]
  readonly reported: RankEvent[]
  rehearsed(stopped: () => boolean): number
}

/** With a `worker` that may do something otherwise than usual. @returns the objects that are left */
function withStage(
  work: (stage: Stage) => void,
  worker: (socket: ZmqSocket) => void = () => {},
): number {
  const { library: options, ranks } = selectDevices('host:1', null)
  const library = openLibrary(options)
  const dir = new TestDir()
  const context = new ZmqContext()
  const kept: KeptRun[] = []
  const reported: RankEvent[] = []
  const spied: Pick<ZmqContext, 'socket'> = {
    socket(type) {
      const socket = context.socket(type)
      if (type === 'REP') worker(socket)
      return socket
    },
  }
  const host = {
    library,
    context: spied as ZmqContext,
    rank: ranks[0]!,
    communicator: new KeptCommunicator(library, ranks[0]!.device),
    remoteSources: new RemoteSources(library),
    quarantine: (run: KeptRun) => void kept.push(run),
    report: (_run: number, event: RankEvent) => void reported.push(event),
  }
  try {
    const path = join(dir.path, 'rehearsal.sock')
    const rehearsed = (stopped: () => boolean) => rehearse(host, `ipc://${path}`, stopped)
    work({ path, kept, reported, rehearsed })
    expect(existsSync(path)).toBe(false)
    return library.liveObjects()
  } finally {
    for (const { ring } of kept) ring?.free()
    context.close()
    dir.remove()
  }
}

test('ten rehearsals of each kind go through and leave nothing', () => {
  const left = withStage(({ rehearsed, kept, reported }) => {
    expect(rehearsed(() => false)).toBe(20)
    expect([...kept, ...reported]).toEqual([])
  })
  expect(left).toBe(0)
})

test('an update that has come keeps them away', () => {
  const left = withStage(({ rehearsed }) => {
    expect(rehearsed(() => true)).toBe(0)
  })
  expect(left).toBe(0)
})

test('an update that comes ends the one at hand, whatever it is at', () => {
  // as often as one is asked whether to stop
  for (let times = 1; times < 200; times += 13) {
    const left = withStage(({ path, rehearsed, kept, reported }) => {
      let asked = 0
      const runs = rehearsed(() => existsSync(path) && ++asked >= times)
      expect(runs).toBeLessThan(10)
      expect([...kept, ...reported]).toEqual([])
    })
    expect(left).toBe(0)
  }
})

/** Workers that go wrong. */
const WRONG: Record<string, (socket: ZmqSocket) => void> = {
  'does not come': (socket) => void (socket.connect = () => {}),
  'does not answer': (socket) => void (socket.send = () => true),
}

for (const [name, worker] of Object.entries(WRONG)) {
  test(`a worker that ${name} fails one soon, and nothing is left`, () => {
    const left = withStage(({ rehearsed, kept, reported }) => {
      const beginMs = performance.now()
      expect(() => rehearsed(() => false)).toThrow(CkptError)
      expect(performance.now() - beginMs).toBeLessThan(1000)
      expect([...kept, ...reported]).toEqual([])
    }, worker)
    expect(left).toBe(0)
  })

  test(`an update need not wait for a worker that ${name}`, () => {
    const left = withStage(({ path, rehearsed, kept, reported }) => {
      let stopMs = Number.POSITIVE_INFINITY
      const runs = rehearsed(() => {
        if (existsSync(path)) stopMs = Math.min(stopMs, performance.now() + 250)
        return performance.now() >= stopMs
      })
      expect(performance.now() - stopMs).toBeLessThan(100)
      expect(runs).toBe(0)
      expect([...kept, ...reported]).toEqual([])
    }, worker)
    expect(left).toBe(0)
  })
}

test('a ring that a copy may still write is kept, and whoever counts them is told', () => {
  const settle = spyOn(Ring.prototype, 'settle').mockReturnValue(false)
  try {
    withStage(({ path, rehearsed, kept, reported }) => {
      expect(rehearsed(() => existsSync(path))).toBe(0)
      expect(kept).toMatchObject([{ run: NO_RUN, read: false, settled: false, conversation: null }])
      expect(reported).toMatchObject([
        { type: 'closed', quarantinedBytes: kept[0]!.ring!.bytes, settled: false },
      ])
    })
  } finally {
    settle.mockRestore()
  }
})
