import { expect, test } from 'bun:test'
import { type Peer, PROGRESS_BYTES, PROGRESS_SENT } from '../rank/messages.ts'
import { type NodeCalls, RemoteRank } from './remote-rank.ts'

const LOST = { code: 'node_lost', message: 'node 1 is lost' } as const

/** Lists that a lost rank is taken to have sent. */
function sentBy(what: (rank: RemoteRank) => void): number {
  const calls = { node: 1, tell() {} } as unknown as NodeCalls
  const rank = new RemoteRank({ rank: 2 } as never, 0, calls, () => ({}) as never)
  const progress = new SharedArrayBuffer(PROGRESS_BYTES)
  const events: string[] = []
  rank.listen(7, 0, ({ type }) => events.push(type), progress)
  what(rank)
  rank.lose(LOST)
  expect(events).toEqual(['failed', 'closed'])
  return Atomics.load(new Int32Array(progress), PROGRESS_SENT)
}

test('a rank that may have sent lists when its daemon was lost is taken to have sent some', () => {
  expect(sentBy((rank) => rank.announce(7))).toBe(1)
  expect(sentBy(() => {})).toBe(0)
  // of another run
  expect(sentBy((rank) => rank.announce(6))).toBe(0)
})

test('a rank is told which others of its daemon are in the update, as that numbers them', async () => {
  const asked: unknown[] = []
  const calls = {
    node: 1,
    part: { lease: 1, firstOwner: 0 },
    ask: async (request: unknown) => void asked.push(request),
  } as unknown as NodeCalls
  const rank = new RemoteRank({ rank: 5 } as never, 1, calls, () => ({}) as never)
  const board = new SharedArrayBuffer(0)
  const peer: Peer = { progress: new SharedArrayBuffer(PROGRESS_BYTES), signal: 0, board }
  for (const peers of [
    [null, peer, peer],
    [null, null, peer],
  ]) {
    const collective = { type: 'communicator', id: '00', sharers: 1, peers }
    const options = { ranks: [0, 4, 5], buffers: [], deadlineMs: 0, collective }
    await rank.request({ type: 'open', options } as never)
  }
  expect(asked).toMatchObject([
    { request: { meeting: { here: [null, 0, 1] } } },
    { request: { meeting: { here: [null, null, 1] } } },
  ])
})

// its daemon is silent, and is given up only when the update has ended
test('a rank that is told to stop is taken to have sent lists until its daemon has said what it has sent', async () => {
  const answered = Promise.withResolvers<null>()
  const calls = { node: 1, tell() {}, ask: () => answered.promise } as unknown as NodeCalls
  const rank = new RemoteRank({ rank: 2 } as never, 0, calls, () => ({}) as never)
  const told = new SharedArrayBuffer(PROGRESS_BYTES)
  const sent = () => Atomics.load(new Int32Array(told), PROGRESS_SENT)
  const progress = new Int32Array(PROGRESS_BYTES / 4)
  rank.listen(7, 0, () => {}, told)
  rank.raiseAbort()
  expect(sent()).toBe(0)
  rank.announce(7)
  rank.raiseAbort()
  expect(sent()).toBe(1)
  // of before it was told
  rank.take({ op: 'progress', rank: 2, run: 7, progress })
  expect(sent()).toBe(1)
  answered.resolve(null)
  await Bun.sleep(0)
  expect(sent()).toBe(0)
  progress[PROGRESS_SENT] = 3
  rank.take({ op: 'progress', rank: 2, run: 7, progress })
  expect(sent()).toBe(3)
})
