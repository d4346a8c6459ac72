import {
  type ClusterNode,
  type ClusterTimes,
  clusterNode,
  isSameSession,
  type Membership,
  type MembershipEvent,
  type Prove,
  shortened,
} from './membership.ts'
import type { NodeInfo } from './node-info.ts'
import {
  CLUSTER_VERSION,
  type ForeignHello,
  type MessageStart,
  type Packet,
  type PacketOf,
  type Piece,
  type SessionPacket,
} from './packets.ts'

/** How often it is said again that nobody answers. */
const UNANSWERED_MS = 300_000

export interface FollowerOptions {
  readonly nodeRank: number
  readonly nodes: number
  readonly incarnation: string
  readonly info: NodeInfo
  /** Until the leader has told its own. */
  readonly times: ClusterTimes
  readonly prove: Prove
}

interface Session {
  readonly leader: ClusterNode
  /** The leader's: it decides for both. */
  readonly times: ClusterTimes
  /**
   * When it is over, unless the leader says that it has heard something later. The leader waits for as long, but from when it has
   * heard: so what a leader asks of a follower that it has given up is not done any more.
   */
  leaseMs: number
  beatMs: number
  sent: number
  received: number
}

type FollowerEvent = MembershipEvent<null>

/**
 * A follower's side of the membership, without I/O: it says hello until it is welcome, and again whenever its session is over.
 * `route` of its events is null: it has one connection.
 */
export class FollowerMembership implements Membership<null> {
  readonly #options: FollowerOptions
  #events: FollowerEvent[] = []
  #session: Session | null = null
  /** Incarnation of the leader that has answered last. */
  #leader: string | null = null
  #attempt = 0
  #epoch = 0
  /** When to say hello next. */
  #helloMs = 0
  /** When this connection began, or brought something last. */
  #answeredMs: number
  /** When something came last, over whichever connection, or when it began. */
  #heardMs: number
  /** When to say next that nothing comes. */
  #unansweredMs: number

  constructor(nowMs: number, options: FollowerOptions) {
    this.#options = options
    this.#answeredMs = nowMs
    this.#heardMs = nowMs
    this.#unansweredMs = nowMs + options.times.lostMs
  }

  get epoch(): number {
    return this.#epoch
  }

  /** The living session's number, and until when it lives unless the leader answers; null: there is none. */
  get lease(): { readonly session: number; readonly untilMs: number } | null {
    const session = this.#session
    return session === null ? null : { session: session.leader.session, untilMs: session.leaseMs }
  }

  get peers(): ClusterNode[] {
    return this.#session === null ? [] : [this.#session.leader]
  }

  nextMs(): number {
    const session = this.#session
    if (session === null) {
      return Math.min(this.#helloMs, this.#answeredMs + this.#options.times.lostMs)
    }
    return Math.min(session.beatMs + session.times.heartbeatMs, session.leaseMs)
  }

  /** A connection has come about. */
  connected(nowMs: number): FollowerEvent[] {
    this.#expire(nowMs)
    if (this.#session === null) this.#hello(nowMs)
    return this.#drain()
  }

  unreachable(nowMs: number, _route: null = null): FollowerEvent[] {
    this.#lose(nowMs, 'the connection has ended', false)
    return this.#drain()
  }

  receive(
    nowMs: number,
    _route: null,
    packet: Packet | ForeignHello,
    frames: readonly Uint8Array[] = [],
  ): FollowerEvent[] {
    this.#expire(nowMs)
    this.#heardMs = nowMs
    this.#unansweredMs = nowMs + this.#options.times.lostMs
    switch (packet.type) {
      case 'foreign':
      case 'hello':
        break
      case 'challenge':
        this.#challenge(nowMs, packet.leader)
        break
      case 'welcome':
        this.#welcome(nowMs, packet)
        break
      case 'refusal':
        this.#refusal(nowMs, packet)
        break
      default:
        this.#ofSession(nowMs, packet, frames)
    }
    return this.#drain()
  }

  tick(nowMs: number): FollowerEvent[] {
    this.#expire(nowMs)
    const session = this.#session
    if (session === null) {
      if (nowMs >= this.#answeredMs + this.#options.times.lostMs) this.#reconnect(nowMs)
      if (nowMs >= this.#helloMs) this.#hello(nowMs)
      if (nowMs >= this.#unansweredMs) {
        this.#unansweredMs = nowMs + UNANSWERED_MS
        this.#events.push({ type: 'unanswered', forMs: nowMs - this.#heardMs })
      }
    } else if (nowMs >= session.beatMs + session.times.heartbeatMs) {
      session.beatMs = nowMs
      this.#send({ type: 'beat', ...ids(session), epoch: this.#epoch, at: nowMs })
    }
    return this.#drain()
  }

  routeOf(node: ClusterNode): null | undefined {
    return this.#of(node) === null ? undefined : null
  }

  piece(node: ClusterNode, start: MessageStart | null): Packet | null {
    const session = this.#of(node)
    if (session === null) return null
    const packet: Piece = { type: 'piece', ...ids(session), seq: session.sent++ }
    return start === null ? packet : { ...packet, start }
  }

  #of(node: ClusterNode): Session | null {
    const session = this.#session
    return session !== null && isSameSession(session.leader, node) ? session : null
  }

  end(nowMs: number, node: ClusterNode, reason: string): FollowerEvent[] {
    if (this.#of(node) !== null) this.#lose(nowMs, reason, true)
    return this.#drain()
  }

  close(reason: string): FollowerEvent[] {
    if (this.#session !== null) this.#send({ type: 'over', ...ids(this.#session), reason })
    this.#session = null
    return this.#drain()
  }

  #hello(nowMs: number): void {
    const { nodeRank, nodes, incarnation, info, prove, times } = this.#options
    this.#helloMs = nowMs + times.heartbeatMs
    this.#send({
      type: 'hello',
      version: CLUSTER_VERSION,
      node_rank: nodeRank,
      nodes,
      incarnation,
      attempt: this.#attempt,
      at: nowMs,
      leader: this.#leader,
      proof: this.#leader === null ? '' : prove(this.#leader, incarnation, nodeRank),
      info,
    })
  }

  #challenge(nowMs: number, leader: string): void {
    if (this.#session !== null) return
    this.#answeredMs = nowMs
    if (leader === this.#leader) return
    this.#leader = leader
    this.#hello(nowMs)
  }

  #welcome(nowMs: number, packet: PacketOf<'welcome'>): void {
    const { attempt, leader: incarnation, session: number, info } = packet
    if (this.#session !== null || attempt !== this.#attempt || incarnation !== this.#leader) return
    const leader = { nodeRank: 0, session: number, incarnation, info }
    const times = { heartbeatMs: packet.heartbeat_ms, lostMs: packet.lost_ms }
    const clocks = { leaseMs: packet.at + times.lostMs, beatMs: nowMs }
    this.#session = { leader, times, ...clocks, sent: 0, received: 0 }
    this.#events.push({ type: 'joined', node: leader, epoch: packet.epoch })
    this.#members(packet)
  }

  #members({ epoch, nodes }: PacketOf<'members' | 'welcome'>): void {
    this.#epoch = epoch
    this.#events.push({ type: 'members', epoch, members: nodes.map(clusterNode) })
  }

  #refusal(nowMs: number, { code, message }: PacketOf<'refusal'>): void {
    if (this.#session !== null) return
    this.#answeredMs = nowMs
    const { nodeRank, info } = this.#options
    this.#events.push({ type: 'refused', nodeRank, host: info.host, code, message })
  }

  #ofSession(nowMs: number, packet: SessionPacket, frames: readonly Uint8Array[]): void {
    const session = this.#session
    const { leader, session: number } = packet
    if (session?.leader.session !== number || session.leader.incarnation !== leader) {
      if (packet.type === 'over') return
      return this.#send({ type: 'over', leader, session: number, reason: 'its session is over' })
    }
    switch (packet.type) {
      case 'beat':
        session.leaseMs = Math.max(session.leaseMs, packet.at + session.times.lostMs)
        return
      case 'alive':
        return
      case 'probe':
        return this.#send({ ...packet, type: 'alive' })
      case 'members':
        return this.#members(packet)
      case 'over':
        return this.#lose(nowMs, packet.reason, false)
      case 'piece':
        if (packet.seq !== session.received) {
          return this.#lose(nowMs, 'a message was lost on its way', true)
        }
        session.received++
        this.#events.push({ type: 'piece', node: session.leader, piece: packet, frames })
    }
  }

  #expire(nowMs: number): void {
    const session = this.#session
    if (session === null || nowMs < session.leaseMs) return
    this.#lose(nowMs, `it has not answered for ${session.times.lostMs} ms`, true)
  }

  #lose(nowMs: number, reason: string, tell: boolean): void {
    const session = this.#session
    if (session === null) return
    if (tell) this.#send({ type: 'over', ...ids(session), reason })
    this.#session = null
    this.#attempt++
    this.#events.push({
      type: 'lost',
      node: session.leader,
      reason: shortened(reason),
      epoch: this.#epoch,
    })
    this.#reconnect(nowMs)
  }

  #reconnect(nowMs: number): void {
    this.#answeredMs = nowMs
    this.#helloMs = nowMs + this.#options.times.heartbeatMs
    this.#events.push({ type: 'reconnect' })
  }

  #send(packet: Packet): void {
    this.#events.push({ type: 'send', route: null, packet })
  }

  #drain(): FollowerEvent[] {
    const events = this.#events
    this.#events = []
    return events
  }
}

function ids({ leader }: Session): { leader: string; session: number } {
  return { leader: leader.incarnation, session: leader.session }
}
