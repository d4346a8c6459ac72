import { expect, test } from 'bun:test'
import type { Ranks } from '../rank/handle.ts'
import type { Registry } from '../registry/registry.ts'
import { Leader } from './leader.ts'

test('engines of a daemon that is not there are told of later, and nobody sees them', async () => {
  const pool = { links: [] } as unknown as Ranks
  const registry = {} as unknown as Registry
  const engines = new Leader({
    registry,
    pool,
    address: () => '',
    lost: () => {},
    gone: () => {},
    joined: async () => {},
    nodes: 2,
  }).engines(1)
  const call = { method: 'GET', url: 'http://127.0.0.1:1', uds: null, body: null } as const
  const answer = engines.call(call, new AbortController().signal)
  await expect(answer).rejects.toMatchObject({ code: 'node_lost' })
  expect(await engines.listener({ url: call.url, uds: null })).toBeNull()
})
