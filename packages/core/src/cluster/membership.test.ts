import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { LeaderMembership } from './membership-leader.ts'
import { CLUSTER_VERSION, type Hello, readPacket } from './packets.ts'
import { type FollowerSlot, SimulatedCluster, TIMES } from './testing/simulated-cluster.ts'

/** After it everything is settled: silence is noticed, a place given up, and taken. */
const QUIET_MS = 6 * TIMES.lostMs
const NODES = 4
/** Two daemons were given the same rank. */
const RANKS = [1, 2, 3, 3]

function randomOf(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let x = Math.imul(state ^ (state >>> 15), state | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}

const slot = fc.nat({ max: RANKS.length - 1 })
const ms = fc.integer({ min: 1, max: 120 }).map((tens) => tens * 10)
const deed = fc.oneof(
  fc.record({ what: fc.constant('start' as const), slot }),
  fc.record({ what: fc.constant('kill' as const), slot }),
  fc.record({ what: fc.constant('cut' as const), slot, dark: fc.boolean() }),
  fc.record({ what: fc.constant('stop' as const), slot, ms }),
  fc.record({ what: fc.constant('move' as const), slot }),
  fc.record({ what: fc.constantFrom('kill leader', 'start leader', 'replace leader') }),
  fc.record({ what: fc.constant('stop leader' as const), ms }),
  fc.record({ what: fc.constant('lose' as const), part: fc.constantFrom(0, 0.05, 0.5) }),
)
type Deed = typeof deed extends fc.Arbitrary<infer T> ? T : never

function perform(cluster: SimulatedCluster, told: Deed): void {
  const at = 'slot' in told ? cluster.slots[told.slot]! : null
  if (told.what === 'start' && at !== null) cluster.startFollower(at)
  if (told.what === 'kill' && at !== null) cluster.killFollower(at)
  if (told.what === 'move' && at !== null) cluster.move(at)
  if ('dark' in told) cluster.cut(at!, told.dark)
  if ('ms' in told) cluster.stop(at === null ? cluster.leader : at.process, told.ms)
  if (told.what === 'kill leader') cluster.killLeader()
  if (told.what === 'start leader') cluster.startLeader()
  if (told.what === 'replace leader') cluster.replaceLeader()
  if ('part' in told) cluster.loss = told.part
}

/** Everyone who runs has the same view, and of each rank that anybody runs with one is a member. */
function expectAgreement(cluster: SimulatedCluster): void {
  const { leader } = cluster
  const running = cluster.slots.filter(({ process }) => process !== null)
  const ranks = [...new Set(running.map(({ nodeRank }) => nodeRank))].sort()
  expect(leader!.membership.peers.map(({ nodeRank }) => nodeRank)).toEqual(ranks)
  expect([...leader!.living.keys()].sort()).toEqual(ranks)
  const joined = running.filter(({ process }) => process!.living.size > 0)
  expect(joined.map(({ nodeRank }) => nodeRank).sort()).toEqual(ranks)
  for (const { nodeRank, process } of joined) {
    const session = leader!.living.get(nodeRank)!
    expect(session.incarnation).toBe(process!.name)
    expect(process!.living.get(0)).toMatchObject({
      session: session.session,
      incarnation: leader!.name,
    })
    expect(process!.membership.epoch).toBe(leader!.membership.epoch)
    expect(process!.members).toEqual(leader!.members)
  }
  expect(leader!.members.map(({ nodeRank }) => nodeRank)).toEqual([0, ...ranks])
}

test('whatever dies, stops, is cut off or lost: one session of a node, its messages in order, and in the end one view', () => {
  const deeds = fc.array(fc.tuple(deed, ms), { minLength: 5, maxLength: 40, size: 'max' })
  fc.assert(
    fc.property(deeds, fc.integer(), (told, seed) => {
      const cluster = new SimulatedCluster(NODES, RANKS, randomOf(seed))
      cluster.startLeader()
      for (const one of cluster.slots) cluster.startFollower(one)
      for (const [one, forMs] of told) {
        perform(cluster, one)
        for (let passedMs = 0; passedMs < forMs; passedMs += 30) {
          cluster.run(30)
          cluster.post()
        }
      }
      cluster.loss = 0
      cluster.startLeader()
      for (const process of [cluster.leader, ...cluster.slots.map((s) => s.process)]) {
        cluster.stop(process, 0)
      }
      cluster.run(QUIET_MS)
      // that the last message before was lost shows with the next
      cluster.post()
      cluster.run(QUIET_MS)
      expectAgreement(cluster)
      const before = cluster.delivered
      cluster.post()
      cluster.run(200)
      expect(cluster.delivered - before).toBe(2 * cluster.leader!.living.size)
    }),
    { numRuns: 200 },
  )
}, 60_000)

function quietCluster(...ranks: number[]): { cluster: SimulatedCluster; slots: FollowerSlot[] } {
  const cluster = new SimulatedCluster(NODES, ranks, randomOf(1))
  cluster.startLeader()
  for (const one of cluster.slots) cluster.startFollower(one)
  cluster.run(QUIET_MS)
  return { cluster, slots: [...cluster.slots] }
}

describe('one at a time', () => {
  test('a daemon of a rank that lives is refused, and takes the place when that one has died', () => {
    const { cluster, slots } = quietCluster(1, 1)
    const [member, other] = slots[0]!.process!.living.size > 0 ? slots : slots.toReversed()
    const { session } = cluster.leader!.living.get(1)!
    expect(other!.process!.refusals).toBeGreaterThan(2)
    cluster.killFollower(member!)
    cluster.run(3 * TIMES.heartbeatMs + 200)
    expect(cluster.leader!.living.get(1)!.session).toBeGreaterThan(session)
    expect(other!.process!.living.size).toBe(1)
  })

  test('a daemon that was started again has its place at once', () => {
    const { cluster, slots } = quietCluster(2)
    cluster.killFollower(slots[0]!)
    cluster.startFollower(slots[0]!)
    cluster.run(TIMES.lostMs / 2)
    expect(cluster.leader!.living.get(2)!.incarnation).toBe(slots[0]!.process!.name)
  })

  test('a daemon that stood still for longer than the timeout is lost, and joins with another session', () => {
    const { cluster, slots } = quietCluster(1)
    const { session } = cluster.leader!.living.get(1)!
    cluster.stop(slots[0]!.process, 3 * TIMES.lostMs)
    cluster.run(2 * TIMES.lostMs)
    expect(cluster.leader!.living.size).toBe(0)
    cluster.run(2 * TIMES.lostMs)
    expect(cluster.leader!.living.get(1)!.session).toBeGreaterThan(session)
    expectAgreement(cluster)
  })

  test('a leader that was started again has everyone back', () => {
    const { cluster } = quietCluster(1, 2, 3)
    cluster.killLeader()
    cluster.run(QUIET_MS)
    for (const { process } of cluster.slots) expect(process!.living.size).toBe(0)
    cluster.startLeader()
    cluster.run(TIMES.lostMs)
    expectAgreement(cluster)
  })
})

describe('a hello', () => {
  const HELLO: Hello = {
    type: 'hello',
    version: CLUSTER_VERSION,
    node_rank: 1,
    nodes: 2,
    incarnation: 'f',
    attempt: 0,
    leader: 'l',
    proof: 'good',
    info: { host: 'h', ranks: [], version: '1.0.0' },
  }

  function answer(change: Partial<Record<keyof Hello, unknown>>) {
    const leader = new LeaderMembership<string>({
      nodes: 2,
      incarnation: 'l',
      info: HELLO.info,
      times: TIMES,
      checkProof: (proof) => proof === 'good',
    })
    const packet = readPacket({ ...HELLO, ...change })
    if ('fault' in packet) return packet
    const [first] = leader.receive(0, 'route', packet)
    return first?.type === 'send' ? first.packet : first
  }

  test('is answered with a session', () => {
    expect(answer({})).toMatchObject({ type: 'welcome', session: 1, leader: 'l', epoch: 1 })
  })

  test('to another leader is not taken', () => {
    expect(answer({ leader: null })).toEqual({ type: 'challenge', leader: 'l' })
    expect(answer({ leader: 'before' })).toEqual({ type: 'challenge', leader: 'l' })
  })

  test.each([
    [{ proof: 'bad' }, 'unauthorized', 'its cluster token is not that of the leader'],
    [{ nodes: 3 }, 'bad_request', '--nodes 3, the leader --nodes 2'],
    [{ node_rank: 0 }, 'bad_request', '--node-rank is 0'],
    [{ node_rank: 2 }, 'bad_request', '--node-rank is 2'],
    [{ version: 2, info: 'another form' }, 'bad_request', 'version 2'],
  ] as const)('%p is refused', (change, code, words) => {
    expect(answer(change)).toMatchObject({
      type: 'refusal',
      code,
      message: expect.stringContaining(words),
    })
  })

  test('of no known form is a fault', () => {
    expect(answer({ incarnation: 7 })).toHaveProperty('fault')
  })
})
