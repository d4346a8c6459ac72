import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import type { RankInfo } from '../types.ts'
import type { NodeChannel, NodeRequest } from './messages.ts'
import { pack, type Packed, unpack } from './pack.ts'
import { RemoteNode } from './remote-node.ts'

type Layout = Extract<NodeRequest, { op: 'layout' }>
const LAYOUT = { key: 'k', columns: Uint8Array.of(1, 2, 3) }

/** A daemon, and what it was asked, each with the end of its answer. */
function scene() {
  const asked: { request: Layout; answer: PromiseWithResolvers<Packed> }[] = []
  const channel: NodeChannel = {
    request(message) {
      const answer = Promise.withResolvers<Packed>()
      asked.push({ request: unpack(message) as Layout, answer })
      return answer.promise
    },
    post() {},
  }
  const description = { ranks: [], socketDir: '/s', marks: [] }
  const node = new RemoteNode(1, description, channel, () => LAYOUT)
  return { node, asked, answer: (at: number) => asked[at]?.answer.resolve(pack({ held: true })) }
}

test('ranks that need the same layout at once have it sent once', async () => {
  const { node, asked, answer } = scene()
  const both = Promise.all([node.hold(LAYOUT), node.hold(LAYOUT)])
  expect(asked.map(({ request }) => request)).toEqual([
    { op: 'layout', layout: 'k', columns: LAYOUT.columns },
  ])
  answer(0)
  expect(await both).toEqual(['k', 'k'])
  // what it was seen to hold is not sent again, but asked for
  const later = node.hold(LAYOUT)
  expect(asked[1]?.request).toEqual({ op: 'layout', layout: 'k', columns: null })
  answer(1)
  expect(await later).toBe('k')
  expect(asked).toHaveLength(2)
})

test('one that was not taken is sent again for the next', async () => {
  const { node, asked, answer } = scene()
  const both = Promise.allSettled([node.hold(LAYOUT), node.hold(LAYOUT)])
  asked[0]?.answer.reject(new Error('it has no memory'))
  expect((await both).map(({ status }) => status)).toEqual(['rejected', 'rejected'])
  const next = node.hold(LAYOUT)
  expect(asked[1]?.request.columns).toEqual(LAYOUT.columns)
  answer(1)
  expect(await next).toBe('k')
  expect(asked).toHaveLength(2)
})

test('of a failure of one of its ranks the leader hears its own number for it', async () => {
  const refused = Promise.withResolvers<Packed>()
  const channel: NodeChannel = { request: () => refused.promise, post() {} }
  const ranks = [{ rank: 0 }, { rank: 1 }] as unknown as RankInfo[]
  const description = { ranks, socketDir: '/s', marks: [] }
  const node = new RemoteNode(1, description, channel, () => LAYOUT)
  node.number(2)
  const used = node.use(node.ranks)
  refused.reject(new CkptError('device_lost', 'Xid 79', { rank: 1 }))
  expect(await used.catch((error: CkptError) => error.failure)).toEqual({
    code: 'device_lost',
    message: 'Xid 79',
    rank: 3,
  })
})
