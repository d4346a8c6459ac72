import { expect, test } from 'bun:test'
import type { Failure } from '@ckpt/core'
import { missedRank } from './missed-rank.ts'

const MISSED: Failure = {
  code: 'node_lost',
  message: 'NCCL: ncclBroadcast: remote process exited or there was a network error (6) ',
  rank: 1,
  phase: 'transfer',
}

test('within one daemon no other one can be lost: it is the device that has failed', () => {
  expect(missedRank(MISSED, 1)).toEqual({ ...MISSED, code: 'device_error' })
})

test('where all daemons are there, the network of NCCL between them is in question', () => {
  const told = missedRank(MISSED, 2)
  expect(told).toMatchObject({ code: 'node_lost', rank: 1, phase: 'transfer' })
  expect(told.message).toMatch(/network error \(6\); all daemons are there: .*NCCL_SOCKET_IFNAME/)
  const read = { ...MISSED, message: 'UCX: the endpoint is gone' }
  expect(missedRank(read, 2)).toEqual(read)
})
