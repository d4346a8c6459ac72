import { expect, test } from 'bun:test'
import type { ClusterStatus } from '@ckpt/core'
import { requireDaemons } from './require-daemons.ts'

const ALL: ClusterStatus = {
  node_rank: 0,
  nodes: 3,
  joined: 3,
  leader: true,
  epoch: 2,
  peers: [],
  missing: [],
}

test('an update without all daemons says which are missing, and why', () => {
  expect(() => requireDaemons(undefined, 'all')).not.toThrow()
  expect(() => requireDaemons(ALL, 'all')).not.toThrow()
  const missing = [
    { node_rank: 1, message: 'node 1 has not joined', ranks: [] },
    { node_rank: 2, message: 'node 2 has come with 2 ranks in place of 1', ranks: [3] },
  ]
  expect(() => requireDaemons({ ...ALL, joined: 2, missing }, 'all')).toThrow(
    '2 of 3 daemons are missing: node 1 has not joined; node 2 has come with 2 ranks in place of 1',
  )
  expect(() => requireDaemons({ ...ALL, missing: missing.slice(1) }, 'all')).toThrow(
    '1 of 3 daemons is missing: node 2 has come with 2 ranks in place of 1',
  )
  expect(() => requireDaemons({ ...ALL, joined: 2 }, 'all')).toThrow('2 of 3 daemons have joined')
  // whose engines are theirs nobody knows while one was never here
  expect(() => requireDaemons({ ...ALL, joined: 2, missing }, 'survivors')).toThrow(
    'node 1 has not joined',
  )
  expect(requireDaemons({ ...ALL, missing: missing.slice(1) }, 'survivors')).toEqual([3])
})

test('a follower without a leader says why there is none', () => {
  const alone = { ...ALL, node_rank: 1, leader: false, joined: 0 }
  const message = 'the leader has refused this daemon: it was told --nodes 4'
  const missing = [{ node_rank: 0, message, ranks: [] }]
  expect(() => requireDaemons({ ...alone, missing }, 'all')).toThrow(message)
  expect(() => requireDaemons(alone, 'all')).toThrow('the leader is not there')
})
