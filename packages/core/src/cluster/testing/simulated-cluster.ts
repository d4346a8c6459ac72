/** Daemons of a cluster over simulated connections, step by step; what must never happen throws. */
import { FollowerMembership } from '../membership-follower.ts'
import { LeaderMembership } from '../membership-leader.ts'
import type { ClusterNode, Membership, MembershipEvent } from '../membership.ts'
import type { MessageStart, Packet } from '../packets.ts'

export const STEP_MS = 10
export const TIMES = { heartbeatMs: 100, lostMs: 500 }
/** Steps until a daemon tries again to connect. */
const CONNECT_STEPS = 5
const DELAY_STEPS_MAX = 6

interface Parcel {
  readonly dueMs: number
  readonly packet: Packet
}

/** In either direction in order; what is under way when it ends is lost. */
class Connection {
  readonly toLeader: Parcel[] = []
  readonly toFollower: Parcel[] = []
  /** Takes everything and brings nothing, and neither side is told. */
  dark = false
  ended = false

  constructor(readonly id: number) {}
}

/** One process. */
export interface Process<R> {
  readonly name: string
  readonly membership: Membership<R>
  /** Living sessions, by node rank, as its events have told. */
  readonly living: Map<number, ClusterNode>
  members: readonly ClusterNode[]
  refusals: number
  stoppedUntilMs: number
}

export interface FollowerSlot {
  readonly nodeRank: number
  process: (Process<null> & { readonly membership: FollowerMembership }) | null
  connection: Connection | null
  connectMs: number
}

export class SimulatedCluster {
  nowMs = 0
  leader: Process<number> | null = null
  readonly slots: readonly FollowerSlot[]
  /** Part of the packets that get lost, although their connection goes on. */
  loss = 0
  /** Messages that have arrived. */
  delivered = 0
  readonly #nodes: number
  readonly #random: () => number
  readonly #connections = new Map<number, Connection>()
  readonly #order = new Map<string, { sent: number; received: number }>()
  /** Connections that the leader has found ended. */
  readonly #gone: number[] = []
  readonly #sessions = new Set<string>()
  /** Sessions that a leader has given up because it heard nothing. */
  readonly #silent = new Set<string>()
  #ids = 0

  /** @param nodeRanks of the daemons beside the leader: the same more than once is a mistake of who started them */
  constructor(nodes: number, nodeRanks: readonly number[], random: () => number) {
    this.#nodes = nodes
    this.#random = random
    this.slots = nodeRanks.map((nodeRank) => ({
      nodeRank,
      process: null,
      connection: null,
      connectMs: 0,
    }))
  }

  startLeader(): void {
    if (this.leader !== null) return
    const incarnation = `leader ${++this.#ids}`
    const membership = new LeaderMembership<number>({
      nodes: this.#nodes,
      incarnation,
      info: infoOf(incarnation),
      times: TIMES,
      checkProof: (proof, ...of) => proof === of.join(),
    })
    this.leader = { ...blank(incarnation), members: [membership.self], membership }
  }

  killLeader(): void {
    this.leader = null
    this.#gone.length = 0
    for (const connection of this.#connections.values()) connection.ended = true
  }

  startFollower(slot: FollowerSlot): void {
    if (slot.process !== null) return
    const incarnation = `follower ${++this.#ids}`
    const membership = new FollowerMembership(this.nowMs, {
      nodeRank: slot.nodeRank,
      nodes: this.#nodes,
      incarnation,
      info: infoOf(incarnation),
      times: TIMES,
      prove: (...of) => of.join(),
    })
    slot.process = { ...blank(incarnation), membership }
    slot.connectMs = this.nowMs
  }

  killFollower(slot: FollowerSlot): void {
    slot.process = null
    this.#hangUp(slot)
  }

  stop(process: Process<unknown> | null, forMs: number): void {
    if (process !== null) process.stoppedUntilMs = this.nowMs + forMs
  }

  cut(slot: FollowerSlot, dark: boolean): void {
    if (slot.connection === null) return
    if (dark) slot.connection.dark = true
    else slot.connection.ended = true
  }

  /** The connection is another one now, which its follower has not noticed. */
  move(slot: FollowerSlot): void {
    if (slot.connection === null || this.leader === null) return
    slot.connection.ended = true
    slot.connection = new Connection(++this.#ids)
    this.#connections.set(slot.connection.id, slot.connection)
  }

  /** Another leader has come, which no follower has noticed. */
  replaceLeader(): void {
    this.killLeader()
    this.startLeader()
    for (const slot of this.slots) this.move(slot)
  }

  /** Each peer of each daemon is sent a message. */
  post(): void {
    const { leader } = this
    if (leader !== null && this.#runs(leader)) this.#postFrom(leader, 'down')
    for (const { process } of this.slots) {
      if (process !== null && this.#runs(process)) this.#postFrom(process, 'up')
    }
  }

  #postFrom<R>(process: Process<R>, way: 'up' | 'down'): void {
    const { membership } = process
    for (const node of membership.peers) {
      const leader = this.#leaderOf(process, node)
      const key = `${leader} ${node.session} ${way}`
      const order = this.#order.get(key) ?? { sent: 0, received: 0 }
      this.#order.set(key, order)
      const start: MessageStart = { kind: 'post', id: order.sent, sizes: [1] }
      const packet = membership.piece(node, start)
      const route = membership.routeOf(node)
      if (packet === null || route === undefined) throw new Error('a peer without a session')
      order.sent++
      this.#perform(process, [{ type: 'send', route, packet }])
    }
  }

  #leaderOf(process: Process<unknown>, node: ClusterNode): string {
    return process === this.leader ? process.name : node.incarnation
  }

  step(): void {
    this.nowMs += STEP_MS
    for (const slot of this.slots) this.#connect(slot)
    for (const slot of this.slots) this.#stepFollower(slot)
    this.#stepLeader()
  }

  run(forMs: number): void {
    for (let i = 0; i < forMs / STEP_MS; i++) this.step()
  }

  #runs(process: Process<unknown>): boolean {
    return this.nowMs >= process.stoppedUntilMs
  }

  #hangUp(slot: FollowerSlot): void {
    if (slot.connection !== null) slot.connection.ended = true
    slot.connection = null
    slot.connectMs = this.nowMs + CONNECT_STEPS * STEP_MS
  }

  /** A stopped leader's kernel takes connections as well. */
  #connect(slot: FollowerSlot): void {
    const { process, connection } = slot
    if (process === null || connection !== null || this.leader === null) return
    if (this.nowMs < slot.connectMs || !this.#runs(process)) return
    const fresh = new Connection(++this.#ids)
    this.#connections.set(fresh.id, fresh)
    slot.connection = fresh
    this.#perform(process, process.membership.connected(this.nowMs), slot)
  }

  #stepFollower(slot: FollowerSlot): void {
    const { process } = slot
    if (process === null || !this.#runs(process)) return
    const { membership } = process
    const { connection } = slot
    for (const packet of this.#due(connection?.dark ? undefined : connection?.toFollower)) {
      if (slot.connection !== connection) break
      this.#perform(process, membership.receive(this.nowMs, null, packet), slot)
    }
    if (slot.connection === connection && connection?.ended) {
      this.#hangUp(slot)
      this.#perform(process, membership.unreachable(this.nowMs), slot)
    }
    this.#perform(process, membership.tick(this.nowMs), slot)
  }

  #stepLeader(): void {
    const { leader } = this
    if (leader === null || !this.#runs(leader)) return
    for (const { id, dark, toLeader } of this.#connections.values()) {
      if (dark) continue
      for (const packet of this.#due(toLeader)) {
        this.#perform(leader, leader.membership.receive(this.nowMs, id, packet))
        this.#loseGone(leader)
      }
    }
    this.#perform(leader, leader.membership.tick(this.nowMs))
    this.#loseGone(leader)
  }

  /** Not where it is found out: the state machine is in the middle of another event then. */
  #loseGone(leader: Process<number>): void {
    for (let route = this.#gone.shift(); route !== undefined; route = this.#gone.shift()) {
      this.#perform(leader, leader.membership.unreachable(this.nowMs, route))
    }
  }

  #due(parcels: Parcel[] | undefined): Packet[] {
    const packets: Packet[] = []
    while (parcels?.[0] !== undefined && parcels[0].dueMs <= this.nowMs) {
      packets.push(parcels.shift()!.packet)
    }
    return packets
  }

  #perform<R>(
    process: Process<R>,
    events: readonly MembershipEvent<R>[],
    slot: FollowerSlot | null = this.slots.find((one) => one.process === (process as unknown)) ??
      null,
  ): void {
    for (const event of events) {
      if (event.type === 'send') this.#send(process, slot, event.route, event.packet)
      if (event.type === 'reconnect' && slot !== null) this.#hangUp(slot)
      if (event.type === 'refused') process.refusals++
      if (event.type === 'members') takeMembers(process, event.members)
      if (event.type === 'joined') this.#joined(process, event.node)
      if (event.type === 'lost') this.#lost(process, event.node, event.reason)
      if (event.type === 'piece') this.#piece(process, event.node, event.piece.start!)
    }
  }

  #send<R>(process: Process<R>, slot: FollowerSlot | null, route: R, packet: Packet): void {
    const connection = slot?.connection ?? this.#connections.get(route as number)
    if (connection === undefined || (slot !== null && slot.connection === null)) return
    if (connection.ended) {
      if (slot !== null) return
      this.#connections.delete(connection.id)
      this.#gone.push(route as number)
      return
    }
    if (this.#random() < this.loss) return
    const parcels = slot === null ? connection.toFollower : connection.toLeader
    const delayMs = Math.floor(this.#random() * DELAY_STEPS_MAX) * STEP_MS
    const dueMs = Math.max(parcels.at(-1)?.dueMs ?? 0, this.nowMs + delayMs)
    // through JSON, as on the wire
    parcels.push({ dueMs, packet: JSON.parse(JSON.stringify(packet)) })
  }

  #joined(process: Process<unknown>, node: ClusterNode): void {
    if (process.living.has(node.nodeRank)) throw new Error(`two sessions of node ${node.nodeRank}`)
    process.living.set(node.nodeRank, node)
    if (process !== this.leader) return
    const session = `${process.name} ${node.session}`
    if (this.#sessions.has(session)) throw new Error(`session ${session} was there before`)
    this.#sessions.add(session)
  }

  #lost(process: Process<unknown>, node: ClusterNode, reason: string): void {
    if (process.living.get(node.nodeRank)?.session !== node.session) {
      throw new Error(`session ${node.session} was lost, but did not live`)
    }
    process.living.delete(node.nodeRank)
    if (process !== this.leader || !reason.startsWith('nothing was heard')) return
    this.#silent.add(`${process.name} ${node.session}`)
  }

  #piece(process: Process<unknown>, node: ClusterNode, { id }: MessageStart): void {
    if (process.living.get(node.nodeRank)?.session !== node.session) {
      throw new Error(`a message of session ${node.session}, which is over`)
    }
    const way = process === this.leader ? 'up' : 'down'
    if (way === 'down' && this.#silent.has(`${node.incarnation} ${node.session}`)) {
      throw new Error(`a message of session ${node.session}, which the leader has given up`)
    }
    const order = this.#order.get(`${this.#leaderOf(process, node)} ${node.session} ${way}`)
    if (order === undefined) throw new Error('a message of a session that has sent none')
    if (id !== order.received) throw new Error(`message ${id} instead of ${order.received}`)
    order.received++
    this.delivered++
  }
}

function blank(name: string): Omit<Process<never>, 'membership'> {
  return { name, living: new Map(), members: [], refusals: 0, stoppedUntilMs: 0 }
}

function infoOf(host: string): { host: string; ranks: []; version: string } {
  return { host, ranks: [], version: '1.0.0' }
}

function takeMembers(process: Process<unknown>, members: readonly ClusterNode[]): void {
  const ranks = members.map(({ nodeRank }) => nodeRank)
  if (new Set(ranks).size < ranks.length) throw new Error(`members ${ranks.join()}`)
  process.members = members
}
