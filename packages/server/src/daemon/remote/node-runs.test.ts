import { describe, expect, test } from 'bun:test'
import type { Failure } from '@ckpt/core'
import type { RankHandle, RankListener } from '../rank/handle.ts'
import type { OpenOptions, Peer, RankEvent } from '../rank/messages.ts'
import type { NodeLeases } from './node-leases.ts'
import { NodeRuns } from './node-runs.ts'

const ABORTED: Failure = { code: 'aborted', message: 'by the test' }
const CLOSED = {
  type: 'closed',
  settled: true,
  quarantinedBytes: 2 ** 21,
} as unknown as RankEvent

/** One rank of a follower, whose journal is slow. */
function scene() {
  const told: string[] = []
  const listeners: RankListener[] = []
  const written = Promise.withResolvers<void>()
  const copied = Promise.withResolvers<void>()
  const link = {
    rank: { rank: 0 },
    dead: null,
    request: async ({ type }: { type: string }) => void told.push(type),
    listen: (_run: number, _ring: number, listener: RankListener) => listeners.push(listener),
    unlisten: () => told.push('unlisten'),
    raiseAbort: () => told.push('raise'),
    abort: () => told.push('abort'),
    http: (run: number) => told.push(`http ${run}`),
    settled: () => copied.promise,
  } as unknown as RankHandle
  const journal = { conversations: () => written.promise, ended: async () => {} }
  const parts = { journal, pool: { links: [link] }, socketDir: '/engines' } as never
  const leases = { of: () => ({ lease: null, updateId: 'update' }) } as unknown as NodeLeases
  const runs = new NodeRuns(parts, leases, () => {})
  const options = { run: 40, address: 'ipc:///engines/rank-0', http: true }
  const place = { lease: 1, owners: 0, firstOwner: 0, leftMs: 1000 }
  const opened = runs.open(link, { type: 'open', options, place, meeting: null } as never).then(
    () => 'opened',
    (error: Error) => error.message,
  )
  const close = (settled = true) => listeners[0]?.({ ...CLOSED, settled } as RankEvent, link.rank)
  return { runs, link, told, opened, written, copied, close }
}

test('ranks of one daemon tell each other what they have copied, in each run anew', async () => {
  const told = new Map<number, readonly (Peer | null)[]>()
  const listeners: RankListener[] = []
  const links = [0, 1].map((rank) => ({
    rank: { rank },
    signal: 70 + rank,
    listen: (_run: number, _ring: number, listener: RankListener) => listeners.push(listener),
    request: async ({ options: { collective, member, progress } }: { options: OpenOptions }) => {
      const peers = collective?.type === 'communicator' ? collective.peers : []
      expect(peers[member]?.progress).toBe(progress)
      told.set(member, peers)
    },
  })) as unknown as RankHandle[]
  const journal = { conversations: async () => {}, ended: async () => {} }
  const parts = { journal, pool: { links, keeps: () => false }, socketDir: '/engines' } as never
  const leases = { of: () => ({ lease: null, updateId: 'update' }) } as unknown as NodeLeases
  const runs = new NodeRuns(parts, leases, () => {})
  const place = { lease: 1, owners: 0, firstOwner: 0, leftMs: 1000 }
  const meeting = { id: '00', sharers: 2, here: [null, 0, 1] }
  const seen = new Set<unknown>()
  for (const run of [40, 41]) {
    for (const [rank, link] of links.entries()) {
      const options = { run, address: null, http: false, member: rank + 1 }
      await runs.open(link, { type: 'open', options, place, meeting } as never)
    }
    expect(told.get(1)).toEqual(told.get(2) ?? [])
    expect(told.get(1)?.map((peer) => peer?.signal)).toEqual([undefined, 70, 71])
    for (const peer of told.get(1) ?? []) if (peer !== null) seen.add(peer.progress)
    for (const listener of listeners.splice(0)) listener(CLOSED, { rank: 0 } as never)
  }
  expect(seen.size).toBe(4)
})

describe('a run of the leader at a follower', () => {
  test.each(['tell', 'lose'])(
    'that is aborted before its rank opens does not open (%s)',
    async (how) => {
      const { runs, link, told, opened, written } = scene()
      if (how === 'lose') runs.endAll(ABORTED)
      else runs.tell(link, 40, { type: 'abort', failure: ABORTED, leaveMs: 100 })
      written.resolve()
      expect(await opened).toBe('by the test')
      expect(told).not.toContain('open')
      expect(runs.any).toBe(false)
    },
  )

  test('that has closed waits for the answer of its engine, also when the leader is lost', async () => {
    const { runs, told, opened, written, close } = scene()
    written.resolve()
    expect(await opened).toBe('opened')
    close()
    expect(runs.any).toBe(false)
    runs.endAll(ABORTED).answered(ABORTED)
    expect(told).toContain('http 1')
  })

  test.each([true, false])(
    'whose copies go on keeps the checkpoint when the leader is lost (closed before: %p)',
    async (before) => {
      const { runs, opened, written, copied, close } = scene()
      written.resolve()
      await opened
      if (before) close(false)
      const ended = runs.endAll(ABORTED)
      if (!before) close(false)
      await ended.closed
      let settled = false
      void ended.settled.then(() => (settled = true))
      await Bun.sleep(5)
      expect(settled).toBe(false)
      copied.resolve()
      await ended.settled
    },
  )

  test('whose engine has answered is told of it once', async () => {
    const { runs, link, told, opened, written, close } = scene()
    written.resolve()
    await opened
    close()
    runs.tell(link, 40, { type: 'http', ok: false, status: 500, message: 'it has failed' })
    runs.endAll(ABORTED).answered(ABORTED)
    expect(told.filter((one) => one === 'http 1')).toHaveLength(1)
  })
})
