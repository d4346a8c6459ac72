import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { FollowerMembership } from './membership-follower.ts'
import { LeaderMembership } from './membership-leader.ts'
import { CLUSTER_VERSION, type Hello, type PacketOf, readPacket } from './packets.ts'
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

  test('what a leader asked before it gave a follower up is not done any more, whenever that one goes on', () => {
    for (let forMs = TIMES.lostMs - 200; forMs < TIMES.lostMs + 200; forMs += 10) {
      const { cluster, slots } = quietCluster(1)
      cluster.stop(slots[0]!.process, forMs)
      // the simulation throws at a message that comes too late
      for (let ms = 0; ms < 2 * TIMES.lostMs; ms += 10) {
        cluster.post()
        cluster.run(10)
      }
      expect(cluster.delivered).toBeGreaterThan(0)
    }
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

const HELLO: Hello = {
  type: 'hello',
  version: CLUSTER_VERSION,
  node_rank: 1,
  nodes: 2,
  incarnation: 'f',
  attempt: 0,
  at: 0,
  leader: 'l',
  proof: 'good',
  info: { host: 'h', ranks: [], version: '1.0.0' },
}

function newLeader(nodes = 2): LeaderMembership<string> {
  return new LeaderMembership<string>({
    nodes,
    incarnation: 'l',
    info: HELLO.info,
    times: TIMES,
    checkProof: (proof) => proof === 'good',
  })
}

describe('a hello', () => {
  function answer(change: Partial<Record<keyof Hello, unknown>>) {
    const leader = newLeader()
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
    [{ version: 1, info: 'another form' }, 'bad_request', 'version 1'],
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

test('a follower whose leader says nothing tells so after a while, then rarely', () => {
  const follower = new FollowerMembership(0, {
    nodeRank: 1,
    nodes: 2,
    incarnation: 'f',
    info: HELLO.info,
    times: TIMES,
    prove: () => 'good',
  })
  const told: number[] = []
  const run = (fromMs: number, toMs: number) => {
    for (let nowMs = fromMs; nowMs < toMs; nowMs += TIMES.heartbeatMs) {
      const events = follower.tick(nowMs)
      told.push(...events.flatMap((event) => (event.type === 'unanswered' ? [event.forMs] : [])))
    }
  }
  run(0, 290_000)
  expect(told).toEqual([TIMES.lostMs])
  run(290_000, 320_000)
  expect(told).toEqual([TIMES.lostMs, 300_000 + TIMES.lostMs])
  // a refusal is an answer
  const refusal = { type: 'refusal', code: 'bad_request', message: 'no' } as const
  expect(follower.receive(320_000, null, refusal)).toMatchObject([{ type: 'refused' }])
  run(320_000, 320_000 + TIMES.lostMs)
  expect(told).toHaveLength(2)
  run(320_000 + TIMES.lostMs, 320_000 + 2 * TIMES.lostMs)
  expect(told.slice(2)).toEqual([TIMES.lostMs])
})

describe('what belongs to another session', () => {
  const PIECE = { type: 'piece', leader: 'l', session: 1, seq: 0 } as const
  const OVER = { type: 'over', session: 1, reason: 'its session is over' }

  test.each([
    ['another connection', 'other', PIECE],
    ['another leader', 'route', { ...PIECE, leader: 'before' }],
    ['another number', 'route', { ...PIECE, session: 2 }],
  ] as const)('is not taken by the leader: %s', (_, route, piece) => {
    const leader = newLeader()
    leader.receive(0, 'route', { ...HELLO, attempt: 2 })
    const { leader: named, session } = piece
    expect(leader.receive(1, route, piece)).toEqual([
      { type: 'send', route, packet: { ...OVER, type: 'over', leader: named, session } },
    ])
    expect(leader.receive(1, 'route', PIECE)).toMatchObject([{ type: 'piece' }])
  })

  test('a hello from before the session does not end it, a later one does', () => {
    const leader = newLeader()
    leader.receive(0, 'route', { ...HELLO, attempt: 2 })
    expect(leader.receive(1, 'older', { ...HELLO, attempt: 1 })).toEqual([])
    expect(leader.receive(1, 'route', { ...HELLO, attempt: 2 })).toMatchObject([
      { type: 'send', packet: { type: 'welcome', session: 1 } },
    ])
    const types = leader.receive(2, 'later', { ...HELLO, attempt: 3 }).map(({ type }) => type)
    expect(types).toEqual(['lost', 'send', 'joined'])
    expect(leader.peers.map(({ session }) => session)).toEqual([2])
  })

  test('followers that come together are told of together', () => {
    const leader = newLeader(100)
    for (let rank = 1; rank < 100; rank++) {
      leader.receive(rank / 10, `route ${rank}`, { ...HELLO, nodes: 100, node_rank: rank })
      expect(leader.tick(rank / 10)).toHaveLength(rank === 1 ? 1 : 0)
    }
    const told = leader.tick(30)
    expect(told.filter(({ type }) => type === 'members')).toMatchObject([{ epoch: 99 }])
    // the last one knows it from its welcome
    expect(told.filter(({ type }) => type === 'send')).toHaveLength(98)
    expect(leader.tick(60)).toEqual([])
  })

  test('a follower that lives keeps its place when it joins again while another wants it', () => {
    const leader = newLeader()
    leader.receive(0, 'route', HELLO)
    leader.receive(1, 'rival', { ...HELLO, incarnation: 'rival' })
    leader.receive(2, 'again', { ...HELLO, attempt: 1 })
    expect(leader.peers).toMatchObject([{ session: 2, incarnation: 'f' }])
  })

  const WELCOME: PacketOf<'welcome'> = {
    type: 'welcome',
    leader: 'l',
    session: 7,
    attempt: 0,
    at: 0,
    epoch: 3,
    heartbeat_ms: 100,
    lost_ms: 500,
    nodes: [],
    info: HELLO.info,
  }

  function newFollower(): FollowerMembership {
    const { info } = HELLO
    const told = { nodeRank: 1, nodes: 2, incarnation: 'f', info, times: TIMES }
    const follower = new FollowerMembership(0, { ...told, prove: () => 'good' })
    follower.receive(0, null, { type: 'challenge', leader: 'l' })
    return follower
  }

  test.each([{ attempt: 1 }, { leader: 'before' }])('a welcome with %p is none', (change) => {
    const follower = newFollower()
    expect(follower.receive(1, null, { ...WELCOME, ...change })).toEqual([])
    expect(follower.receive(1, null, WELCOME)).toMatchObject([
      { type: 'joined', node: { session: 7 } },
      { type: 'members', epoch: 3 },
    ])
  })

  test.each([{ session: 6 }, { leader: 'before' }])(
    'a follower takes no piece with %p',
    (change) => {
      const follower = newFollower()
      follower.receive(1, null, WELCOME)
      const piece = { ...PIECE, session: 7, ...change }
      const { leader, session } = piece
      expect(follower.receive(2, null, piece)).toEqual([
        {
          type: 'send',
          route: null,
          packet: { type: 'over', leader, session, reason: OVER.reason },
        },
      ])
      expect(follower.peers).toHaveLength(1)
    },
  )

  test('who knows an older epoch is told the members again', () => {
    const leader = newLeader()
    leader.receive(0, 'route', HELLO)
    leader.tick(0)
    const beat = { type: 'beat', leader: 'l', session: 1, at: 1 } as const
    const answer = { type: 'send', route: 'route', packet: { ...beat, epoch: 1 } } as const
    expect(leader.receive(1, 'route', { ...beat, epoch: 1 })).toEqual([answer])
    expect(leader.receive(1, 'route', { ...beat, epoch: 0 })).toMatchObject([
      { type: 'send', packet: { type: 'members', epoch: 1, nodes: [{}, { node_rank: 1 }] } },
      answer,
    ])
  })
})
