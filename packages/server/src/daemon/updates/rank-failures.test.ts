import { expect, test } from 'bun:test'
import type { Failure } from '@ckpt/core'
import type { RankHandle } from '../rank/handle.ts'
import type { RankInfo } from '../types.ts'
import { RankFailures, type UpdateState } from './rank-failures.ts'
import type { RankTeam } from './team.ts'

const RANKS = [0, 1].map((rank) => ({ rank, key: `GPU-${rank}` }) as RankInfo)

/** An update whose rank 1 is the slowest. */
function scene(state: Partial<UpdateState> = {}, leftMs = 0) {
  const links = RANKS.map((rank) => ({ rank, owes: false, dead: null }) as unknown as RankHandle)
  const team = { links, slowestRank: 1, anyOpened: () => true } as unknown as RankTeam
  const told: Failure[] = []
  const all: UpdateState = {
    phase: 'open',
    links,
    team,
    contacts: [],
    settled: new Set(),
    version: null,
    reading: '',
    waitsForCopies: false,
    ...state,
  }
  const times = { leftMs, waitMs: leftMs }
  const failures = new RankFailures(
    { timeoutMs: 3000 },
    times,
    () => all,
    (one) => told.push(one),
  )
  return { failures, told, links }
}

test('an update that is late names its slowest rank', () => {
  const message = 'the 3 s of the update have passed in phase open'
  const late = { code: 'update_timeout', message, phase: 'open', rank: 1 } as const
  expect(scene().failures.late).toEqual(late)
})

test('one that waits for copies of an earlier update says so, and names no rank of its own', () => {
  const { late } = scene({ waitsForCopies: true }).failures
  expect(late.rank).toBeUndefined()
  expect(late.message).toEndWith('; copies of an aborted update still write an engine')
})

test('but one that owes an answer is named', () => {
  const [first, second] = RANKS
  const silent = { rank: second, owes: true } as unknown as RankHandle
  const links = [{ rank: first, owes: false } as unknown as RankHandle, silent]
  expect(scene({ waitsForCopies: true, links }).failures.late.rank).toBe(1)
})

test('at the deadline the word of the slowest rank counts, and that of another only for what is known here', async () => {
  const { failures, told } = scene({ reading: '; files are read' })
  const of = (rank: number): Failure => ({ code: 'update_timeout', message: 'it waits', rank })
  failures.take(of(0), RANKS[0]!, true)
  expect(told).toEqual([])
  failures.take(of(1), RANKS[1]!, true)
  expect(told).toEqual([{ ...of(1), message: 'it waits; files are read' }])
  await Bun.sleep(250)
  expect(told[1]).toMatchObject({ rank: 1, message: expect.stringContaining('have passed') })
})

test.each(['engine_failed', 'engine_disconnected'] as const)(
  'an engine that gives up at the deadline (%s) is not what the update waited for, one before it is',
  async (code) => {
    const gaveUp: Failure = { code, message: 'timed out waiting for list 9', rank: 0 }
    const atDeadline = scene({ phase: 'transfer' })
    atDeadline.failures.take(gaveUp, RANKS[0]!, true)
    expect(atDeadline.told).toEqual([])
    await Bun.sleep(250)
    expect(atDeadline.told).toMatchObject([{ code: 'update_timeout', phase: 'transfer', rank: 1 }])
    const slowest = scene({ phase: 'transfer' })
    slowest.failures.take({ ...gaveUp, rank: 1 }, RANKS[1]!, true)
    expect(slowest.told).toEqual([{ ...gaveUp, rank: 1 }])
    const before = scene({ phase: 'transfer' }, 1000)
    before.failures.take(gaveUp, RANKS[0]!, true)
    expect(before.told).toEqual([gaveUp])
  },
)

test('a device whose worker never came while others did is missing', () => {
  const { failures, told } = scene()
  const silent: Failure = { code: 'engine_timeout', phase: 'open', message: 'nobody came', rank: 0 }
  failures.take(silent, RANKS[0]!, false)
  const message = expect.stringContaining('no worker has connected for device GPU-0 of rank 0')
  expect(told).toEqual([{ ...silent, code: 'engine_device_missing', message }])
})
