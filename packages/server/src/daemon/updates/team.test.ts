import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import type { RankHandle, RankListener } from '../rank/handle.ts'
import { PROGRESS_ACKED, type RankEvent } from '../rank/messages.ts'
import { type DirectTeamOpening, RankTeam, type TeamOpening } from './team.ts'

const OPENING = { ringBytes: 2 ** 21, openMs: 1000, deadlineMs: 1e15 } as unknown as TeamOpening
const ALONE = () => ({ address: null, http: false, engine: null, dialect: null })

/** A rank that refuses everything. */
function refusing(rank: number): RankHandle {
  const request = () =>
    Promise.reject(new CkptError('rank_failed', 'its Worker has died', { rank }))
  return { rank: { rank }, node: 0, dead: null, request } as unknown as RankHandle
}

test('of ranks that could not meet nothing is waited for, and the checkpoint may go', async () => {
  const team = new RankTeam(1, [refusing(0), refusing(1)], () => {})
  await expect(team.open(OPENING, ALONE)).rejects.toThrow('its Worker has died')
  expect(team.settling).toBeNull()
  await team.left()
})

interface TestRank {
  readonly link: RankHandle
  told(event: RankEvent): void
  acked(groups: number): void
}

/** A rank that opens and then does what it is told to. */
function willing(rank: number): TestRank {
  let listener: RankListener = () => {}
  let progress = new Int32Array(new SharedArrayBuffer(0))
  const link = {
    rank: { rank },
    node: 0,
    dead: null,
    listen(_run: number, _ring: number, told: RankListener, buffer: SharedArrayBuffer) {
      listener = told
      progress = new Int32Array(buffer)
    },
    request: () => Promise.resolve({ bytesBefore: 0, bytesAfter: 0, streams: [] }),
  } as unknown as RankHandle
  return {
    link,
    told: (event) => listener(event, link.rank),
    acked: (groups) => Atomics.store(progress, PROGRESS_ACKED, groups),
  }
}

async function openedDirectly(ranks: readonly TestRank[], groups: readonly number[]) {
  const team = new RankTeam(
    1,
    ranks.map(({ link }) => link),
    () => {},
  )
  const memoryAt = () => ({ away: [], remotes: [] })
  await team.openDirect({ memoryAt } as unknown as DirectTeamOpening, () => {
    return { address: '', engine: '' }
  })
  const none = new Float64Array(0)
  for (const [i, rank] of ranks.entries()) {
    const looked = { groups: groups[i] as number, bytes: 8, shareableBytes: 0, needs: none }
    rank.told({ type: 'looked', ...looked })
    rank.told({ type: 'begun', streams: [] })
  }
  return team
}

test('of a direct update that rank is the slowest that has the least part of its own copies', async () => {
  const ranks = [willing(0), willing(1)] as const
  const team = await openedDirectly(ranks, [10, 100])
  ranks[0].acked(9)
  ranks[1].acked(50)
  expect(team.slowestRank).toBe(1)
  ranks[0].acked(4)
  expect(team.slowestRank).toBe(0)
})

test('of ranks that have copied all that one is the slowest that has not said so', async () => {
  const ranks = [willing(0), willing(1)] as const
  const team = await openedDirectly(ranks, [10, 10])
  for (const rank of ranks) rank.acked(10)
  ranks[0].told({ type: 'transferred', readBy: [], takenBytes: 0 })
  expect(team.slowestRank).toBe(1)
})
