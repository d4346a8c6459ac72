import type { ErrorCode } from '../api/errors.ts'
import {
  type ClusterNode,
  type ClusterTimes,
  type MembershipEvent,
  isSameSession,
  memberBody,
  type CheckProof,
  type Membership,
  shortened,
} from './membership.ts'
import { GUESTS_MAX, NODE_RANKS, NODES_MAX, type NodeInfo } from './node-info.ts'
import {
  CLUSTER_VERSION,
  type ForeignHello,
  type Hello,
  type MessageStart,
  type Packet,
  type Piece,
  type SessionPacket,
} from './packets.ts'

/** Heartbeats that a member may take to answer when another daemon of its node rank has come. */
const PROBE_HEARTBEATS = 2
/** Heartbeats between two lists of the members. */
const ANNOUNCE_HEARTBEATS = 0.25

export interface LeaderOptions {
  readonly nodes: number
  readonly incarnation: string
  readonly info: NodeInfo
  readonly times: ClusterTimes
  readonly checkProof: CheckProof
}

/** Another daemon of a member's node rank: it takes the place when the member does not answer. */
interface Contender<R> {
  readonly nonce: number
  readonly sinceMs: number
  route: R
  hello: Hello
}

interface Member<R> {
  readonly node: ClusterNode
  readonly route: R
  readonly attempt: number
  heardMs: number
  /** By the follower's clock: what it has said last. */
  at: number
  beatMs: number
  /** The epoch whose members it was told. */
  told: number
  /** Pieces that were sent and received. */
  sent: number
  received: number
  contender: Contender<R> | null
}

/**
 * The leader's side of the membership, without I/O. A session is bound to one connection (`route`) of one process
 * (`incarnation`); what comes with another, or out of order, ends it or is dropped.
 *
 * @example
 * const leader = new LeaderMembership<string>({ nodes: 2, incarnation: 'a', info, times: CLUSTER_TIMES, checkProof })
 * for (const event of leader.receive(nowMs, route, packet, frames)) perform(event)
 */
export class LeaderMembership<R> implements Membership<R> {
  readonly #options: LeaderOptions
  /** By node rank. */
  readonly #members = new Map<number, Member<R>>()
  #events: MembershipEvent<R>[] = []
  #sessions = 0
  #nonces = 0
  #epoch = 0
  /** Whether the members were not told since they changed. */
  #changed = false
  #announcedMs = Number.NEGATIVE_INFINITY

  constructor(options: LeaderOptions) {
    this.#options = options
  }

  get epoch(): number {
    return this.#epoch
  }

  /** The leader itself, as its followers see it. */
  get self(): ClusterNode {
    const { incarnation, info } = this.#options
    return { nodeRank: 0, session: 0, incarnation, info }
  }

  /** Living sessions, by node rank. */
  get peers(): ClusterNode[] {
    const nodes = [...this.#members.values()].map(({ node }) => node)
    return nodes.sort((a, b) => a.nodeRank - b.nodeRank)
  }

  nextMs(): number {
    const { heartbeatMs, lostMs } = this.#options.times
    const never = Number.POSITIVE_INFINITY
    let next = this.#changed ? this.#announcedMs + this.#announceMs : never
    for (const { beatMs, heardMs, contender } of this.#members.values()) {
      next = Math.min(next, beatMs + heartbeatMs, heardMs + lostMs)
      if (contender !== null) next = Math.min(next, contender.sinceMs + this.#probeMs)
    }
    return next
  }

  get #probeMs(): number {
    return PROBE_HEARTBEATS * this.#options.times.heartbeatMs
  }

  receive(
    nowMs: number,
    route: R,
    packet: Packet | ForeignHello,
    frames: readonly Uint8Array[] = [],
  ): MembershipEvent<R>[] {
    this.#expire(nowMs)
    switch (packet.type) {
      case 'foreign': {
        const theirs = `speaks version ${packet.version} of the daemons' protocol`
        const message = `this daemon ${theirs}, the leader ${CLUSTER_VERSION}: run the same ckpt on every node`
        this.#send(route, { type: 'refusal', code: 'bad_request', message })
        break
      }
      case 'hello':
        this.#hello(nowMs, route, packet)
        break
      case 'challenge':
      case 'welcome':
      case 'refusal':
        break
      default:
        this.#ofSession(nowMs, route, packet, frames)
    }
    return this.#drain()
  }

  tick(nowMs: number): MembershipEvent<R>[] {
    this.#expire(nowMs)
    for (const member of this.#members.values()) {
      if (nowMs < member.beatMs + this.#options.times.heartbeatMs) continue
      this.#beat(nowMs, member)
    }
    this.#announce(nowMs)
    return this.#drain()
  }

  routeOf(node: ClusterNode): R | undefined {
    return this.#of(node)?.route
  }

  piece(node: ClusterNode, start: MessageStart | null): Packet | null {
    const member = this.#of(node)
    if (member === undefined) return null
    const packet: Piece = { type: 'piece', ...this.#session(member), seq: member.sent++ }
    return start === null ? packet : { ...packet, start }
  }

  #of(node: ClusterNode): Member<R> | undefined {
    const member = this.#members.get(node.nodeRank)
    return member !== undefined && isSameSession(member.node, node) ? member : undefined
  }

  unreachable(nowMs: number, route: R): MembershipEvent<R>[] {
    for (const member of this.#members.values()) {
      if (member.contender?.route === route) member.contender = null
      if (member.route === route) this.#lose(nowMs, member, 'its connection has ended', false)
    }
    return this.#drain()
  }

  end(nowMs: number, node: ClusterNode, reason: string): MembershipEvent<R>[] {
    const member = this.#of(node)
    if (member !== undefined) this.#lose(nowMs, member, reason, true)
    return this.#drain()
  }

  close(reason: string): MembershipEvent<R>[] {
    for (const member of this.#members.values()) {
      this.#send(member.route, { type: 'over', ...this.#session(member), reason })
    }
    this.#members.clear()
    return this.#drain()
  }

  #hello(nowMs: number, route: R, hello: Hello): void {
    const { incarnation, checkProof } = this.#options
    if (hello.leader !== incarnation) {
      return this.#send(route, { type: 'challenge', leader: incarnation })
    }
    if (!checkProof(hello.proof, incarnation, hello.incarnation, hello.node_rank)) {
      const message = 'its cluster token is not that of the leader'
      return this.#refuse(route, hello, 'unauthorized', message)
    }
    const fault = this.#fault(hello)
    if (fault !== null) return this.#refuse(route, hello, 'bad_request', fault)
    const member = this.#members.get(hello.node_rank)
    if (member === undefined) return this.#admit(nowMs, route, hello)
    if (member.node.incarnation !== hello.incarnation) {
      return this.#contend(nowMs, member, route, hello)
    }
    if (hello.attempt < member.attempt) return
    // the welcome is on its way, or was lost
    if (hello.attempt === member.attempt && member.route === route) {
      member.heardMs = nowMs
      member.at = hello.at
      return this.#welcome(member)
    }
    // it lives: who has come for its place waits
    member.contender = null
    this.#lose(nowMs, member, 'it has joined again', false)
    this.#admit(nowMs, route, hello)
  }

  #fault({ node_rank, nodes }: Hello): string | null {
    if (node_rank >= NODES_MAX) return this.#guestFault(node_rank)
    if (nodes !== this.#options.nodes) {
      return `it was told --nodes ${nodes}, the leader --nodes ${this.#options.nodes}`
    }
    if (node_rank >= 1 && node_rank < nodes) return null
    return `its --node-rank is ${node_rank}, a follower's must lie in [1, ${nodes - 1}]`
  }

  #guestFault(nodeRank: number): string | null {
    if (nodeRank >= NODE_RANKS)
      return `its node rank is ${nodeRank}, a guest's is below ${NODE_RANKS}`
    const guests = this.peers.filter(
      (one) => one.nodeRank >= NODES_MAX && one.nodeRank !== nodeRank,
    )
    return guests.length < GUESTS_MAX ? null : `${GUESTS_MAX} guests are there already`
  }

  #contend(nowMs: number, member: Member<R>, route: R, hello: Hello): void {
    const { contender } = member
    if (contender !== null) {
      // a third waits until these two are settled
      if (contender.hello.incarnation !== hello.incarnation) return
      contender.route = route
      contender.hello = hello
      return
    }
    const nonce = ++this.#nonces
    member.contender = { nonce, sinceMs: nowMs, route, hello }
    this.#send(member.route, { type: 'probe', ...this.#session(member), nonce })
  }

  #ofSession(nowMs: number, route: R, packet: SessionPacket, frames: readonly Uint8Array[]): void {
    const member = this.#memberOf(route, packet)
    if (member === undefined) {
      if (packet.type === 'over') return
      const { leader, session } = packet
      return this.#send(route, { type: 'over', leader, session, reason: 'its session is over' })
    }
    member.heardMs = nowMs
    switch (packet.type) {
      case 'beat':
        member.at = packet.at
        // else it is told anyway
        if (packet.epoch !== this.#epoch && !this.#changed) this.#tellMembers(member)
        return this.#beat(nowMs, member)
      case 'probe':
        return this.#send(route, { ...packet, type: 'alive' })
      case 'alive':
        return this.#refuseContender(member, packet.nonce)
      case 'over':
        return this.#lose(nowMs, member, packet.reason, false)
      case 'piece':
        if (packet.seq !== member.received) {
          return this.#lose(nowMs, member, 'a message was lost on its way', true)
        }
        member.received++
        this.#events.push({ type: 'piece', node: member.node, piece: packet, frames })
    }
  }

  #memberOf(route: R, { leader, session }: SessionPacket): Member<R> | undefined {
    if (leader !== this.#options.incarnation) return undefined
    for (const member of this.#members.values()) {
      if (member.node.session === session) return member.route === route ? member : undefined
    }
    return undefined
  }

  #refuseContender(member: Member<R>, nonce: number): void {
    const { contender, node } = member
    if (contender?.nonce !== nonce) return
    member.contender = null
    const message = `another daemon, on ${node.info.host}, lives with --node-rank ${node.nodeRank}`
    this.#refuse(contender.route, contender.hello, 'bad_request', message)
  }

  #expire(nowMs: number): void {
    const { lostMs } = this.#options.times
    for (const member of this.#members.values()) {
      const { contender } = member
      const silent = nowMs >= member.heardMs + lostMs
      const replaced = contender !== null && nowMs >= contender.sinceMs + this.#probeMs
      if (!silent && !replaced) continue
      const reason = silent
        ? `nothing was heard of it for ${lostMs} ms`
        : 'another daemon has taken its place'
      this.#lose(nowMs, member, reason, true)
    }
  }

  /** The first who waits for the place takes it. */
  #lose(nowMs: number, member: Member<R>, reason: string, tell: boolean): void {
    const { node, contender } = member
    this.#members.delete(node.nodeRank)
    this.#epoch++
    this.#changed = true
    if (tell) {
      this.#send(member.route, { type: 'over', ...this.#session(member), reason })
    }
    this.#events.push({ type: 'lost', node, reason: shortened(reason), epoch: this.#epoch })
    if (contender !== null) return this.#admit(nowMs, contender.route, contender.hello)
  }

  #admit(nowMs: number, route: R, hello: Hello): void {
    const { node_rank: nodeRank, incarnation, attempt, at, info } = hello
    const node = { nodeRank, session: ++this.#sessions, incarnation, info }
    const member: Member<R> = {
      node,
      route,
      attempt,
      heardMs: nowMs,
      at,
      beatMs: nowMs,
      told: 0,
      sent: 0,
      received: 0,
      contender: null,
    }
    this.#members.set(nodeRank, member)
    this.#epoch++
    this.#changed = true
    this.#welcome(member)
    this.#events.push({ type: 'joined', node, epoch: this.#epoch })
  }

  #beat(nowMs: number, member: Member<R>): void {
    member.beatMs = nowMs
    const { at } = member
    this.#send(member.route, { type: 'beat', ...this.#session(member), epoch: this.#epoch, at })
  }

  #welcome(member: Member<R>): void {
    const { times, info } = this.#options
    member.told = this.#epoch
    this.#send(member.route, {
      type: 'welcome',
      ...this.#session(member),
      attempt: member.attempt,
      at: member.at,
      epoch: this.#epoch,
      heartbeat_ms: times.heartbeatMs,
      lost_ms: times.lostMs,
      nodes: this.#everyone().map(memberBody),
      info,
    })
  }

  /** Followers that come one after the other are told of together: a list has every node, and everyone gets it. */
  #announce(nowMs: number): void {
    if (!this.#changed || nowMs < this.#announcedMs + this.#announceMs) return
    this.#changed = false
    this.#announcedMs = nowMs
    this.#events.push({ type: 'members', epoch: this.#epoch, members: this.#everyone() })
    for (const member of this.#members.values()) {
      if (member.told !== this.#epoch) this.#tellMembers(member)
    }
  }

  get #announceMs(): number {
    return this.#options.times.heartbeatMs * ANNOUNCE_HEARTBEATS
  }

  #everyone(): ClusterNode[] {
    return [this.self, ...this.peers]
  }

  #tellMembers(member: Member<R>): void {
    const nodes = this.#everyone().map(memberBody)
    const session = this.#session(member)
    member.told = this.#epoch
    this.#send(member.route, { type: 'members', ...session, epoch: this.#epoch, nodes })
  }

  #refuse(route: R, { node_rank, info }: Hello, code: ErrorCode, message: string): void {
    this.#send(route, { type: 'refusal', code, message })
    const { host } = info
    this.#events.push({ type: 'refused', nodeRank: node_rank, host, code, message })
  }

  #session({ node }: Member<R>): { leader: string; session: number } {
    return { leader: this.#options.incarnation, session: node.session }
  }

  #send(route: R, packet: Packet): void {
    this.#events.push({ type: 'send', route, packet })
  }

  #drain(): MembershipEvent<R>[] {
    const events = this.#events
    this.#events = []
    return events
  }
}
