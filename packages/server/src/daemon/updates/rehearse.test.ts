import { expect, setDefaultTimeout, spyOn, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { resetSync } from '@logtape/logtape'
import { CkptError, type Failure } from '@ckpt/core'
import { configureLogging } from '../log.ts'
import { RankLink } from '../rank/link.ts'
import type { DaemonOptions } from '../types.ts'
import type { Updates } from './updates.ts'
import { NAME, tensorsOf, until, withUpdates } from './testing/fixture.ts'

setDefaultTimeout(60_000)

interface Rehearsed {
  /** What the ranks were asked for when the daemon served. */
  readonly asked: readonly string[]
  readonly answers: readonly unknown[]
  /** That a real update then moved. */
  readonly tensors: number
}

/** One takes some ten milliseconds: longer than this thread may sleep before it looks again. */
function untilOneRuns(stateDir: string): void {
  for (let looks = 0; looks < 100_000; looks++) {
    if (readdirSync(`${stateDir}/engines`).length > 0) return
    Bun.sleepSync(0.1)
  }
  throw new Error('no rank has begun')
}

/** Of two ranks. */
async function rehearsed(spin: DaemonOptions['spin'], meanwhile: boolean): Promise<Rehearsed> {
  const request = spyOn(RankLink.prototype, 'request')
  let seen: Rehearsed | null = null
  try {
    await withUpdates(
      async ({ updates, register, options, engine: start }) => {
        const engine = await start()
        await register(tensorsOf(10, 1000, 1))
        request.mockClear()
        updates.begin()
        const answers = request.mock.results.map(({ value }) => value)
        const asked = request.mock.calls.map(([{ type }]) => type)
        if (meanwhile) untilOneRuns(options.stateDir)
        else await Promise.all(answers)
        const update = { update_url: `${engine.url}/collective_rpc`, timeout: 30 }
        const { tensors } = await updates.start(NAME, update).done
        seen = { asked, answers: await Promise.all(answers), tensors }
      },
      { spin },
    )
    if (seen === null) throw new Error('there was no update')
    return seen
  } finally {
    request.mockRestore()
  }
}

test('where ranks spin each rehearses updates when the daemon serves', async () => {
  const { asked, answers, tensors } = await rehearsed('on', false)
  expect(asked).toEqual(['rehearse', 'rehearse'])
  expect(answers).toEqual([{ runs: 20 }, { runs: 20 }])
  expect(tensors).toBe(10)
})

test('an update that comes while one runs does not wait for all of them', async () => {
  const { answers, tensors } = await rehearsed('on', true)
  expect(answers).toHaveLength(2)
  for (const { runs } of answers as { runs: number }[]) expect(runs).toBeLessThan(10)
  expect(tensors).toBe(10)
})

test('where they do not, nobody does', async () => {
  expect(await rehearsed('off', false)).toEqual({ asked: [], answers: [], tensors: 10 })
})

/** Begins where each rehearsal fails. */
async function failed(
  failure: Failure,
  work: (updates: Updates, lines: readonly string[]) => Promise<void>,
): Promise<void> {
  const lines: string[] = []
  configureLogging({ format: 'text', level: 'debug', write: (line) => void lines.push(line) })
  const request = spyOn(RankLink.prototype, 'request')
  try {
    await withUpdates(
      async ({ updates }) => {
        request.mockImplementation(() => Promise.reject(CkptError.from(failure)))
        updates.begin()
        await work(updates, lines)
        request.mockRestore()
      },
      { spin: 'on' },
    )
  } finally {
    request.mockRestore()
    resetSync()
  }
}

test('a device that is lost in one ends the daemon', async () => {
  const lost: Failure = { rank: 0, code: 'device_lost', message: 'Xid 79' }
  await failed(lost, async ({ deviceLost }) => expect(await deviceLost).toEqual(lost))
})

test('what else one fails of is said in the log of who looks for it', async () => {
  const failure: Failure = { rank: 0, code: 'update_timeout', message: 'no answer' }
  await failed(failure, async ({ deviceLost }, lines) => {
    const ended = deviceLost.then(() => 'ended')
    await until(() => lines.length >= 2)
    expect(lines.join('')).toMatch(/DBG.*no answer|debug.*no answer/i)
    expect(await Promise.race([ended, Bun.sleep(20)])).toBeUndefined()
  })
})
