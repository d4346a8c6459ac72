import { CkptError, type Failure } from '@ckpt/core'
import { FollowerMembership } from '@ckpt/core/cluster/membership-follower'
import { LeaderMembership } from '@ckpt/core/cluster/membership-leader'
import {
  type ClusterNode,
  CLUSTER_TIMES,
  isSameSession,
  type Membership,
  type MembershipEvent,
} from '@ckpt/core/cluster/membership'
import type { Packet } from '@ckpt/core/cluster/packets'
import { type Packed, pack, unpack } from '../remote/pack.ts'
import type { Random } from './random.ts'
import type { Life, SimulatedTime, Timer } from './time.ts'

/** What a message between daemons is. */
interface Carried {
  readonly kind: 'request' | 'answer' | 'refusal' | 'post'
  readonly id: number
  readonly message: Packed
}

interface Parcel {
  readonly packet: Packet
  readonly carried: Carried | null
}

/** What a daemon does with what the others tell it. */
export interface NetworkEvents {
  joined(node: ClusterNode): void
  lost(node: ClusterNode, failure: Failure): void
  post(node: ClusterNode, message: unknown): void
  request(node: ClusterNode, message: unknown): Promise<unknown>
}

interface Waiting {
  readonly node: ClusterNode
  readonly timer: ReturnType<typeof setTimeout>
  readonly resolve: (message: Packed) => void
  readonly reject: (error: CkptError) => void
}

/** A connection of a follower to the leader: what is sent comes in order. */
class Connection {
  /** It takes everything and brings nothing, and neither side is told. */
  dark = false
  ended = false
  upMs = 0
  downMs = 0

  constructor(readonly follower: NetworkEnd<null>) {}
}

/** A daemon's place in the cluster: the state machine of its membership, and requests over its sessions. */
export class NetworkEnd<R> {
  readonly life: Life
  readonly membership: Membership<R>
  readonly #network: Network
  readonly #events: NetworkEvents
  readonly #waiting = new Map<number, Waiting>()
  #connection: Connection | null = null
  #nextId = 0
  #tick: Timer | null = null

  constructor(network: Network, life: Life, membership: Membership<R>, events: NetworkEvents) {
    this.#network = network
    this.life = life
    this.membership = membership
    this.#events = events
  }

  get connection(): Connection | null {
    return this.#connection
  }

  connect(): void {
    if (!this.life.alive || !(this.membership instanceof FollowerMembership)) return
    this.#connection = new Connection(this as unknown as NetworkEnd<null>)
    this.perform(this.membership.connected(this.#network.time.nowMs) as MembershipEvent<R>[])
  }

  /** What has come, or the time. */
  receive(route: R, { packet, carried }: Parcel): void {
    const events = this.membership.receive(this.#network.time.nowMs, route, packet)
    this.perform(events, carried)
  }

  unreachable(route: R): void {
    this.perform(this.membership.unreachable(this.#network.time.nowMs, route))
  }

  /** @param carried of a piece among them */
  perform(events: readonly MembershipEvent<R>[], carried: Carried | null = null): void {
    for (const event of events) {
      switch (event.type) {
        case 'send':
          this.#send(event.route, { packet: event.packet, carried: null })
          break
        case 'joined':
          this.#events.joined(event.node)
          break
        case 'lost':
          this.#lost(event.node, event.reason)
          break
        case 'piece':
          if (carried !== null) this.#take(event.node, carried)
          break
        case 'reconnect':
          this.#network.hangUp(this.#connection)
          break
        default:
      }
    }
    this.#plan()
  }

  #plan(): void {
    const { time } = this.#network
    const nextMs = this.membership.nextMs()
    if (this.#tick !== null) this.#tick.cancelled = true
    if (!Number.isFinite(nextMs)) return
    const tick = () => this.perform(this.membership.tick(time.nowMs))
    this.#tick = time.at(nextMs, tick, this.life)
  }

  #send(route: R, parcel: Parcel): void {
    const connection = (route as unknown) instanceof Connection ? route : this.#connection
    if (connection === null) return
    this.#network.carry(this as NetworkEnd<unknown>, connection as Connection, parcel)
  }

  #carry(node: ClusterNode, carried: Carried): void {
    const start = { kind: carried.kind, id: carried.id, sizes: [1] }
    const packet = this.membership.piece(node, start as never)
    const route = this.membership.routeOf(node)
    if (packet === null || route === undefined) return
    this.#send(route, { packet, carried })
  }

  #lives(node: ClusterNode): boolean {
    return this.membership.peers.some((peer) => isSameSession(peer, node))
  }

  request(node: ClusterNode, message: Packed, limitMs: number): Promise<Packed> {
    if (!this.#lives(node)) return Promise.reject(this.#failure(node, 'its session is over'))
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      const late = new CkptError('update_timeout', `no answer within ${limitMs} ms`)
      const timer = setTimeout(() => this.#settle(id, (one) => one.reject(late)), limitMs)
      this.#waiting.set(id, { node, timer, resolve, reject })
      this.#carry(node, { kind: 'request', id, message })
    })
  }

  post(node: ClusterNode, message: Packed): void {
    if (this.#lives(node)) this.#carry(node, { kind: 'post', id: 0, message })
  }

  #settle(id: number, settle: (waiting: Waiting) => void): void {
    const waiting = this.#waiting.get(id)
    if (waiting === undefined) return
    this.#waiting.delete(id)
    clearTimeout(waiting.timer)
    settle(waiting)
  }

  #take(node: ClusterNode, { kind, id, message }: Carried): void {
    switch (kind) {
      case 'post':
        return this.#events.post(node, unpack(message))
      case 'request':
        return void this.#answer(node, id, message)
      case 'answer':
        return this.#settle(id, (waiting) => waiting.resolve(message))
      case 'refusal':
        return this.#settle(id, (waiting) =>
          waiting.reject(CkptError.from(message.body as Failure)),
        )
    }
  }

  async #answer(node: ClusterNode, id: number, message: Packed): Promise<void> {
    try {
      const answer = pack(await this.#events.request(node, unpack(message)))
      this.#carry(node, { kind: 'answer', id, message: answer })
    } catch (error) {
      const refusal = { body: CkptError.wrap(error).failure, parts: [] }
      this.#carry(node, { kind: 'refusal', id, message: refusal })
    }
  }

  #failure(node: ClusterNode, reason: string): CkptError {
    const { nodeRank } = node
    const code = nodeRank === 0 ? 'leader_lost' : 'node_lost'
    return new CkptError(code, `node ${nodeRank} was lost: ${reason}`)
  }

  #lost(node: ClusterNode, reason: string): void {
    const error = this.#failure(node, reason)
    for (const [id, waiting] of this.#waiting) {
      if (isSameSession(waiting.node, node)) this.#settle(id, (one) => one.reject(error))
    }
    this.#events.lost(node, error.failure)
  }

  /** It is told that its connection has ended. */
  hungUp(): void {
    this.#connection = null
  }
}

const CONNECT_MS = 100

/** The way between the daemons. */
export class Network {
  readonly time: SimulatedTime
  readonly #random: Random
  readonly #delayMs: number
  leader: NetworkEnd<Connection> | null = null

  /** @param delayMs the most that a message takes */
  constructor(time: SimulatedTime, random: Random, delayMs: number) {
    this.time = time
    this.#random = random
    this.#delayMs = delayMs
  }

  lead(life: Life, name: string, nodes: number, events: NetworkEvents): NetworkEnd<Connection> {
    const membership = new LeaderMembership<Connection>({
      nodes,
      incarnation: name,
      info: infoOf(name),
      times: CLUSTER_TIMES,
      checkProof: (proof, ...of) => proof === of.join(),
    })
    this.leader = new NetworkEnd(this, life, membership, events)
    return this.leader
  }

  follow(
    life: Life,
    name: string,
    place: { readonly nodeRank: number; readonly nodes: number },
    events: NetworkEvents,
  ): NetworkEnd<null> {
    const membership = new FollowerMembership(this.time.nowMs, {
      ...place,
      incarnation: name,
      info: infoOf(name),
      times: CLUSTER_TIMES,
      prove: (...of) => of.join(),
    })
    const end = new NetworkEnd<null>(this, life, membership, events)
    this.time.as(life, () => end.connect())
    return end
  }

  carry(from: NetworkEnd<unknown>, connection: Connection, parcel: Parcel): void {
    const up = from === (connection.follower as NetworkEnd<unknown>)
    const { leader, time } = this
    if (connection.ended || connection.dark || leader === null) return
    const soonest = time.nowMs + this.#random.between(0, this.#delayMs)
    const dueMs = Math.max(soonest, up ? connection.upMs : connection.downMs)
    if (up) connection.upMs = dueMs
    else connection.downMs = dueMs
    // as on the wire
    const packet = JSON.parse(JSON.stringify(parcel.packet)) as Packet
    const carried = parcel.carried === null ? null : copied(parcel.carried)
    const arrive = () => {
      if (connection.ended || connection.dark) return
      if (up) leader.receive(connection, { packet, carried })
      else if (connection.follower.connection === connection) {
        connection.follower.receive(null, { packet, carried })
      }
    }
    time.at(dueMs, arrive, up ? leader.life : connection.follower.life)
  }

  /** What is on the way is lost, and both sides see the end of it. */
  hangUp(connection: Connection | null): void {
    if (connection === null || connection.ended) return
    connection.ended = true
    const { follower } = connection
    const { leader, time } = this
    if (leader !== null && !connection.dark) {
      time.after(
        this.#random.between(0, this.#delayMs),
        () => leader.unreachable(connection),
        leader.life,
      )
    }
    follower.hungUp()
    time.after(CONNECT_MS, () => follower.connect(), follower.life)
  }

  /** The connection ends, and its follower sees it. */
  cut(follower: NetworkEnd<null>): void {
    const { connection } = follower
    if (connection === null) return
    this.hangUp(connection)
    this.time.as(follower.life, () => follower.unreachable(null))
  }

  /** It brings nothing any more, which nobody is told. */
  darken(follower: NetworkEnd<null>): void {
    if (follower.connection !== null) follower.connection.dark = true
  }
}

function copied({ kind, id, message }: Carried): Carried {
  const body = JSON.parse(JSON.stringify(message.body ?? null))
  return { kind, id, message: { body, parts: message.parts.map((part) => part.slice()) } }
}

function infoOf(host: string): { host: string; ranks: []; version: string } {
  return { host, ranks: [], version: '1.0.0' }
}
