import type { ErrorCode } from '../api/errors.ts'
import type { NodeInfo } from './node-info.ts'
import type { ForeignHello, MemberBody, MessageStart, Packet, Piece } from './packets.ts'

/** How often each side says that it lives, and how long it may say nothing. */
export interface ClusterTimes {
  readonly heartbeatMs: number
  readonly lostMs: number
}

export const CLUSTER_TIMES: ClusterTimes = { heartbeatMs: 1000, lostMs: 5000 }

/** One daemon of a cluster in one of its sessions; a session with the same numbers never comes again. */
export interface ClusterNode {
  readonly nodeRank: number
  readonly session: number
  /** Random id of its process. */
  readonly incarnation: string
  readonly info: NodeInfo
}

/** Shows that a follower has the token; over the incarnations of leader and follower. */
export type Prove = (leader: string, follower: string, nodeRank: number) => string
export type CheckProof = (
  proof: string,
  leader: string,
  follower: string,
  nodeRank: number,
) => boolean

/** What a state machine of the membership wants done, in this order. `R`: how the leader addresses a connection. */
export type MembershipEvent<R> =
  | { readonly type: 'send'; readonly route: R; readonly packet: Packet }
  | { readonly type: 'joined'; readonly node: ClusterNode; readonly epoch: number }
  | {
      readonly type: 'lost'
      readonly node: ClusterNode
      readonly reason: string
      readonly epoch: number
    }
  /** A piece of a message of a living session: each exactly once and in the order of sending. */
  | {
      readonly type: 'piece'
      readonly node: ClusterNode
      readonly piece: Piece
      readonly frames: readonly Uint8Array[]
    }
  | {
      readonly type: 'members'
      readonly epoch: number
      readonly members: readonly ClusterNode[]
    }
  /** Leader: who was refused. Follower: it was, and will try again. */
  | {
      readonly type: 'refused'
      readonly nodeRank: number
      readonly host: string
      readonly code: ErrorCode
      readonly message: string
    }
  /** Follower: nobody has said anything for so long. It goes on trying. */
  | { readonly type: 'unanswered'; readonly forMs: number }
  /** Follower: what is left in the connection belongs to the past; make another one. */
  | { readonly type: 'reconnect' }

/** Either side's state machine. Each call says what has happened, and returns what is to be done. */
export interface Membership<R> {
  /** Ascends with every change of the members. */
  readonly epoch: number
  /** The other side of each living session, by node rank. */
  readonly peers: readonly ClusterNode[]
  /** When `tick` has something to do next. */
  nextMs(): number
  tick(nowMs: number): MembershipEvent<R>[]
  receive(
    nowMs: number,
    route: R,
    packet: Packet | ForeignHello,
    frames?: readonly Uint8Array[],
  ): MembershipEvent<R>[]
  /** This connection has ended. */
  unreachable(nowMs: number, route: R): MembershipEvent<R>[]
  /** The connection of this session; undefined when it is over. */
  routeOf(node: ClusterNode): R | undefined
  /** The packet of a message's next piece, `start` with its first; null when the session is over. */
  piece(node: ClusterNode, start: MessageStart | null): Packet | null
  /** Ends this session, if it lives. */
  end(nowMs: number, node: ClusterNode, reason: string): MembershipEvent<R>[]
  /** Tells the other side of every session that this daemon goes. */
  close(reason: string): MembershipEvent<R>[]
}

export function memberBody({ nodeRank, session, incarnation, info }: ClusterNode): MemberBody {
  return { node_rank: nodeRank, session, incarnation, info }
}

export function clusterNode({ node_rank, session, incarnation, info }: MemberBody): ClusterNode {
  return { nodeRank: node_rank, session, incarnation, info }
}

/** Whether both are the same session. */
export function isSameSession(a: ClusterNode, b: ClusterNode): boolean {
  return a.session === b.session && a.nodeRank === b.nodeRank && a.incarnation === b.incarnation
}

/** The most characters of a reason. */
const REASON_MAX = 1000

export function shortened(reason: string): string {
  return reason.length > REASON_MAX ? `${reason.slice(0, REASON_MAX)}...` : reason
}
