import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import type { RankHandle } from '../rank/handle.ts'
import { RankTeam, type TeamOpening } from './team.ts'

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
