import { afterEach, beforeEach, expect, jest, test } from 'bun:test'
import { CkptError, type Failure } from '@ckpt/core'
import type { RankLink } from '../rank/link.ts'
import { MEASURED_BYTES } from '../rank/measure.ts'
import type { RankInfo } from '../types.ts'
import { isIdle, Measuring } from './measuring.ts'
import type { RateBook } from './rates.ts'

const IDLE_MS = 1000

interface Asked {
  readonly uuid: string
  readonly stop: Int32Array
  answer(bytesPerSecond: number | null): Promise<void>
  fail(error: CkptError): Promise<void>
}

/** Two devices, the first of them with two ranks, and answers that the test gives. */
class Scene {
  readonly asked: Asked[] = []
  readonly known = new Map<string, number>()
  idle = true
  /** How often somebody asked whether it is. */
  looks = 0
  told = 0
  readonly failures: Failure[] = []
  readonly links: (Pick<RankLink, 'rank'> & { dead: Failure | null })[]
  readonly measuring: Measuring

  constructor(uuids: readonly string[] = ['a', 'b', 'a']) {
    this.links = uuids.map((uuid) => ({
      rank: { uuid } as RankInfo,
      dead: null,
      request: ({ stop }: { stop: SharedArrayBuffer }) => {
        const { promise, resolve, reject } = Promise.withResolvers()
        this.asked.push({
          uuid,
          stop: new Int32Array(stop),
          answer: (bytesPerSecond) => settled(() => resolve({ bytesPerSecond })),
          fail: (error) => settled(() => reject(error)),
        })
        return promise
      },
    }))
    const rates = {
      h2dBytesPerSecond: (uuid: string) => this.known.get(uuid) ?? null,
      measured: async (uuid: string, rate: number) => void this.known.set(uuid, rate),
    }
    this.measuring = new Measuring({
      pool: { links: this.links as unknown as RankLink[] },
      rates: rates as unknown as RateBook,
      idle: () => {
        this.looks++
        return this.idle
      },
      measured: () => void this.told++,
      failed: (failure) => void this.failures.push(failure),
    })
  }
}

async function settled(work: () => void): Promise<void> {
  work()
  for (let turns = 0; turns < 10; turns++) await Promise.resolve()
}

const pass = (ms: number) => settled(() => void jest.advanceTimersByTime(ms))

beforeEach(() => void jest.useFakeTimers())
afterEach(() => void jest.useRealTimers())

test('each device is measured once, one after the other, when the daemon has been left alone', async () => {
  const { measuring, asked, known, ...scene } = new Scene()
  await pass(10 * IDLE_MS)
  expect(asked).toEqual([])
  measuring.begin()
  await pass(IDLE_MS - 1)
  expect(asked).toEqual([])
  await pass(1)
  expect(asked.map(({ uuid }) => uuid)).toEqual(['a'])
  await asked[0]!.answer(1e9)
  await pass(0)
  expect(asked.map(({ uuid }) => uuid)).toEqual(['a', 'b'])
  await asked[1]!.answer(2e9)
  measuring.restart()
  await pass(100 * IDLE_MS)
  expect(asked).toHaveLength(2)
  expect([...known]).toEqual([
    ['a', 1e9],
    ['b', 2e9],
  ])
  expect(scene.told).toBe(0)
})

test('what is known is not measured again, and whoever plans is told of what is new', async () => {
  const scene = new Scene()
  scene.known.set('a', 1e9)
  scene.measuring.begin()
  await pass(IDLE_MS)
  expect(scene.asked.map(({ uuid }) => uuid)).toEqual(['b'])
  expect(scene.told).toBe(0)
  await scene.asked[0]!.answer(2e9)
  expect(scene.told).toBe(1)
})

test('a daemon that is not idle is left alone, and looked at less and less often', async () => {
  const scene = new Scene(['a'])
  scene.idle = false
  scene.measuring.begin()
  await pass(100 * IDLE_MS)
  scene.idle = true
  await pass(20 * IDLE_MS)
  expect(scene.asked).toEqual([])
  await pass(60 * IDLE_MS)
  expect(scene.asked).toHaveLength(1)
})

test('an update keeps a measurement away and stops one that runs; it is made up for after the update', async () => {
  const { measuring, asked } = new Scene(['a'])
  measuring.begin()
  await pass(IDLE_MS - 1)
  measuring.pause()
  await pass(100 * IDLE_MS)
  expect(asked).toEqual([])
  measuring.restart()
  await pass(IDLE_MS)
  expect(asked[0]!.stop[0]).toBe(0)
  measuring.pause()
  expect(asked[0]!.stop[0]).toBe(1)
  await asked[0]!.answer(null)
  measuring.restart()
  await pass(IDLE_MS)
  expect(asked).toHaveLength(2)
  expect(asked[1]!.stop[0]).toBe(0)
})

test('what failed is not tried again', async () => {
  const { measuring, asked, known } = new Scene()
  measuring.begin()
  await pass(IDLE_MS)
  await asked[0]!.fail(new CkptError('host_memory_exhausted', 'no'))
  await pass(0)
  expect(asked.map(({ uuid }) => uuid)).toEqual(['a', 'b'])
  await asked[1]!.answer(2e9)
  measuring.restart()
  await pass(100 * IDLE_MS)
  expect(asked).toHaveLength(2)
  expect([...known.keys()]).toEqual(['b'])
})

test('a device that cannot be measured yet is asked for again less and less often, also after another one was', async () => {
  const { measuring, asked } = new Scene(['a', 'b'])
  measuring.begin()
  await pass(IDLE_MS)
  await asked[0]!.answer(1e9)
  await pass(0)
  for (const [tries, waitMs] of [IDLE_MS, 2 * IDLE_MS, 4 * IDLE_MS].entries()) {
    expect(asked).toHaveLength(2 + tries)
    await asked.at(-1)!.answer(null)
    await pass(waitMs - 1)
    expect(asked).toHaveLength(2 + tries)
    await pass(1)
  }
  expect(asked.map(({ uuid }) => uuid)).toEqual(['a', 'b', 'b', 'b', 'b'])
})

test('a daemon that is not idle after a measurement is looked at less and less often, too', async () => {
  const scene = new Scene(['a', 'b'])
  scene.measuring.begin()
  await pass(IDLE_MS)
  scene.idle = false
  await scene.asked[0]!.answer(1e9)
  scene.looks = 0
  for (let ms = 0; ms < 3 * IDLE_MS + 10; ms += 10) await pass(10)
  // at once, and 1 s and 3 s later
  expect(scene.looks).toBe(3)
})

test('a pause while a measurement runs lasts until the restart, whatever the measurement tells', async () => {
  for (const rate of [1e9, null]) {
    const scene = new Scene(['a', 'b'])
    const { measuring, asked } = scene
    measuring.begin()
    await pass(IDLE_MS)
    measuring.pause()
    await asked[0]!.answer(rate)
    scene.looks = 0
    await pass(100 * IDLE_MS)
    expect([scene.looks, asked.length]).toEqual([0, 1])
    measuring.restart()
    await pass(IDLE_MS)
    expect(asked).toHaveLength(2)
  }
})

test('a restart while a stopped measurement still runs is made up for when that has ended', async () => {
  const { measuring, asked } = new Scene(['a'])
  measuring.begin()
  await pass(IDLE_MS)
  measuring.pause()
  measuring.restart()
  await asked[0]!.answer(null)
  await pass(IDLE_MS)
  expect(asked).toHaveLength(2)
})

test('whoever ends the daemon is told of a failure, such as a lost device', async () => {
  const { measuring, asked, failures } = new Scene()
  measuring.begin()
  await pass(IDLE_MS)
  await asked[0]!.fail(new CkptError('device_lost', 'Xid 79'))
  expect(failures).toEqual([{ code: 'device_lost', message: 'Xid 79' }])
})

test('a Worker that dies meanwhile says nothing of its device', async () => {
  const { measuring, asked, links } = new Scene(['a'])
  measuring.begin()
  await pass(IDLE_MS)
  const dead: Failure = { code: 'rank_failed', message: 'the rank Worker has ended' }
  links[0]!.dead = dead
  await asked[0]!.fail(CkptError.from(dead))
  // an update starts another Worker
  measuring.pause()
  links[0]!.dead = null
  measuring.restart()
  await pass(IDLE_MS)
  expect(asked).toHaveLength(2)
})

test('a daemon that closes stops it, and nothing is measured any more', async () => {
  const { measuring, asked } = new Scene(['a'])
  measuring.begin()
  await pass(IDLE_MS)
  measuring.close()
  expect(asked[0]!.stop[0]).toBe(1)
  await asked[0]!.answer(null)
  measuring.restart()
  await pass(100 * IDLE_MS)
  expect(asked).toHaveLength(1)
})

test('a daemon is idle when nothing runs, waits, is read or may be copied, and memory is left', () => {
  const link = { busy: false, dead: null }
  const idle = (change: Record<string, unknown> = {}) => {
    const { runningId, queued, quarantinedBytes, links, busy, pinned } = {
      runningId: null,
      queued: 0,
      quarantinedBytes: 0,
      links: [link, link],
      busy: false,
      pinned: 0,
      ...change,
    }
    const memory = () => ({ pinned_bytes: pinned, budget_bytes: MEASURED_BYTES })
    const pool = { links: links as unknown as RankLink[], quarantinedBytes }
    return isIdle({ runningId, queued }, pool, { busy, memory })
  }
  expect(idle()).toBe(true)
  const reasons = [
    { runningId: 'u1' },
    { queued: 1 },
    { busy: true },
    { quarantinedBytes: 1 },
    { links: [link, { ...link, busy: true }] },
    { links: [{ ...link, dead: { code: 'rank_failed', message: '' } }, link] },
    { pinned: 1 },
  ]
  for (const reason of reasons) expect([reason, idle(reason)]).toEqual([reason, false])
})
