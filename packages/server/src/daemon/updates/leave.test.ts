import { expect, test } from 'bun:test'
import type { Failure } from '@ckpt/core'
import type { RankInfo } from '../types.ts'
import { clockMs } from '../clock.ts'
import type { EngineContact } from './contact.ts'
import { type FailedUpdate, leave } from './leave.ts'
import type { RankTeam } from './team.ts'
import { UpdateTimes } from './times.ts'

const FAILURE: Failure = { code: 'update_timeout', message: 'it is late', rank: 1 }
const RANKS = [0, 1].map((rank) => ({ rank }) as RankInfo)

test('an engine whose ranks have left is told at once, though a rank of another one never does', async () => {
  const beganMs = performance.now()
  const told = new Map<number, number>()
  const contacts = RANKS.map((rank) => {
    const fail = async () => void told.set(rank.rank, performance.now() - beganMs)
    return { ranks: [rank], fail } as unknown as EngineContact
  })
  const never = new Promise<void>(() => {})
  const team = {
    abort: () => {},
    left: () => never,
    leftBy: ([rank]: readonly RankInfo[]) => (rank?.rank === 0 ? Promise.resolve() : never),
    anySent: () => true,
    allFinished: () => false,
    dialectOf: () => null,
    released: false,
  } as unknown as RankTeam
  const context = {
    journal: { ended: async () => {} },
    book: { save: async () => {} },
    closing: new AbortController().signal,
    pool: { keeps: () => false },
  } as unknown as FailedUpdate['context']
  // it was over a second ago: half a second is left for ranks to leave
  const times = new UpdateTimes(clockMs() - 1000)
  const rest = { updateId: 'one', weightVersion: null, conversations: null }
  expect(await leave({ context, team, contacts, failure: FAILURE, times, ...rest })).toBe(FAILURE)
  expect(told.get(0)).toBeLessThan(200)
  expect(told.get(1)).toBeGreaterThan(400)
})
