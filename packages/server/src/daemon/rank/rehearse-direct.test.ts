import { expect, setDefaultTimeout, spyOn, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { openLibrary, selectDevices, ZmqContext, type ZmqSocket } from '@ckpt/cuda'
import { TestDir } from '../registry/testing/fixture.ts'
import { CopyQueue } from './copy-queue.ts'
import { KeptCommunicator } from './kept-communicator.ts'
import type { RankEvent } from './messages.ts'
import type { KeptRun } from './quarantine.ts'
import { rehearseDirect } from './rehearse-direct.ts'
import { RemoteSources } from './remote-sources.ts'

setDefaultTimeout(60_000)
const RUNS = 3

interface Rehearsed {
  readonly runs: number | string
  /** What was left to the real quarantine, and told of. */
  readonly kept: readonly KeptRun[]
  readonly reported: readonly RankEvent[]
  readonly batches: number
  /** Native objects. */
  readonly left: number
}

/** With a `worker` that may do something otherwise than usual. */
function rehearsed(
  stopped: (path: string) => boolean,
  worker: (socket: ZmqSocket) => void = () => {},
): Rehearsed {
  const { library: options, ranks } = selectDevices('host:1', null)
  const library = openLibrary(options)
  const batch = spyOn(library, 'copyH2dBatch')
  const dir = new TestDir()
  const context = new ZmqContext()
  const socket = (type: Parameters<ZmqContext['socket']>[0]) => {
    const made = context.socket(type)
    if (type === 'REP') worker(made)
    return made
  }
  const kept: KeptRun[] = []
  const reported: RankEvent[] = []
  const host = {
    library,
    context: { socket } as unknown as ZmqContext,
    rank: ranks[0]!,
    communicator: new KeptCommunicator(library, ranks[0]!.device),
    remoteSources: new RemoteSources(library),
    quarantine: (run: KeptRun) => void kept.push(run),
    report: (_run: number, event: RankEvent) => void reported.push(event),
  }
  const path = join(dir.path, 'rehearsal.sock')
  const signal = library.signalCreate()
  const play = (): number | string => {
    try {
      const address = `ipc://${path}`
      return rehearseDirect({ host, signal, stopped: () => stopped(path), address, runs: RUNS })
    } catch (error) {
      return CkptError.wrap(error).code
    }
  }
  try {
    const runs = play()
    library.signalDestroy(signal)
    for (const { ring } of kept) {
      ring?.settle(1000)
      ring?.free()
    }
    expect(existsSync(path)).toBe(false)
    return { runs, kept, reported, batches: batch.mock.calls.length, left: library.liveObjects() }
  } finally {
    batch.mockRestore()
    context.close()
    dir.remove()
  }
}

const NOTHING = { kept: [], reported: [], left: 0 }

test('each run copies rows, what is contiguous and what is gathered, and nothing is left', () => {
  // eight groups on two streams, and what is gathered
  expect(rehearsed(() => false)).toEqual({ ...NOTHING, runs: RUNS, batches: RUNS * 17 })
})

test('an update that has come keeps them away', () => {
  expect(rehearsed(() => true)).toEqual({ ...NOTHING, runs: 0, batches: 0 })
})

test('an update that comes ends the one at hand, whatever it is at', () => {
  const ran = new Set<number | string>()
  for (let times = 1; times < 40; times += 2) {
    let asked = 0
    const { runs, batches, ...left } = rehearsed((path) => existsSync(path) && ++asked >= times)
    expect(left).toEqual(NOTHING)
    // no more than those that went through, and the one at hand
    expect(batches).toBeLessThanOrEqual((Number(runs) + 1) * 17)
    ran.add(runs)
  }
  expect(ran.has(0)).toBe(true)
})

const WRONG: Record<string, (socket: ZmqSocket) => void> = {
  'does not come': (socket) => void (socket.connect = () => {}),
  'does not answer': (socket) => void (socket.send = () => true),
}

for (const [name, worker] of Object.entries(WRONG)) {
  test(`a worker that ${name} fails one soon, and nothing is left`, () => {
    const beginMs = performance.now()
    const { runs, kept, reported, left } = rehearsed(() => false, worker)
    expect(performance.now() - beginMs).toBeLessThan(1500)
    expect({ kept, reported, left }).toEqual(NOTHING)
    expect(runs).toBeString()
  })
}

test('copies that do not end are given up', () => {
  const complete = spyOn(CopyQueue.prototype, 'takeComplete').mockImplementation(() => {})
  try {
    const { runs, left } = rehearsed(() => false)
    expect(runs).toBe('update_timeout')
    expect(left).toBe(0)
  } finally {
    complete.mockRestore()
  }
})
