import { type } from 'arktype'
import { Count, ErrorCodeName } from '../api/bounds.ts'
import { NODE_RANKS, NODES_MAX, NodeInfo } from './node-info.ts'

/** Of what daemons of one cluster say to each other, here and in `daemon/remote/messages.ts`. Those of another version are refused. */
export const CLUSTER_VERSION = 6

/** The most bytes of one part of a message, and of all of them. */
export const PART_BYTES_MAX = 2 ** 30
export const MESSAGE_BYTES_MAX = 2 ** 31
/** The most binary parts of a message. */
export const PARTS_MAX = 65_536

const NodeRank = type(`0 <= number.integer < ${NODE_RANKS}`)
const Incarnation = type('1 <= string <= 64')
const Milliseconds = type('0 < number <= 3600000')
/** When a follower said it, by its own clock; the leader says the last one it has heard. */
const At = type('number >= 0')

/** A member as the leader tells it; the leader itself has session 0. */
export const MemberBody = type({
  node_rank: NodeRank,
  session: Count,
  incarnation: Incarnation,
  info: NodeInfo,
})
export type MemberBody = typeof MemberBody.infer

/** A follower wants to join. */
export const Hello = type({
  type: "'hello'",
  version: Count,
  node_rank: Count,
  nodes: Count,
  /** Random id of the daemon's process. */
  incarnation: Incarnation,
  /** Ascends with each session that the follower has lost: what an older one began is not taken up again. */
  attempt: Count,
  at: At,
  /** The incarnation of the leader that is meant; null: not known yet, the leader tells it with a challenge. */
  leader: Incarnation.or('null'),
  /** Shows that the follower has the token; over both incarnations. */
  proof: 'string <= 128',
  info: NodeInfo,
})
export type Hello = typeof Hello.infer

const Challenge = type({ type: "'challenge'", leader: Incarnation })
const Welcome = type({
  type: "'welcome'",
  leader: Incarnation,
  session: Count,
  attempt: Count,
  at: At,
  epoch: Count,
  heartbeat_ms: Milliseconds,
  lost_ms: Milliseconds,
  nodes: MemberBody.array().atMostLength(2 * NODES_MAX),
  info: NodeInfo,
})
const Refusal = type({ type: "'refusal'", code: ErrorCodeName, message: 'string <= 2048' })

/** What belongs to a session; sessions of different leaders may have the same number. */
const OfSession = type({ leader: Incarnation, session: Count })
const Beat = OfSession.and({ type: "'beat'", epoch: Count, at: At })
/** Asks whether the other side lives; only a packet `alive` with the same number says so. */
const Probe = OfSession.and({ type: "'probe' | 'alive'", nonce: Count })
const Members = OfSession.and({
  type: "'members'",
  epoch: Count,
  nodes: MemberBody.array().atMostLength(2 * NODES_MAX),
})
/** The session is over. */
const Over = OfSession.and({ type: "'over'", reason: 'string <= 2048' })

/** How a message begins. */
export const MessageStart = type({
  kind: "'request' | 'answer' | 'refusal' | 'post'",
  /** Of the request; chosen by the side that asks. */
  id: Count,
  /** Bytes of the body (JSON), then of each part. */
  sizes: type(`0 <= number.integer <= ${PART_BYTES_MAX}`)
    .array()
    .atLeastLength(1)
    .atMostLength(PARTS_MAX + 1),
})
export type MessageStart = typeof MessageStart.infer

/** The next piece of a session's messages, one message after the other; its bytes travel beside it. */
const Piece = OfSession.and({ type: "'piece'", seq: Count, 'start?': MessageStart })
export type Piece = typeof Piece.infer

/** A daemon of another version, whose other fields nobody knows. */
export interface ForeignHello {
  readonly type: 'foreign'
  readonly version: number
}

export const Packet = Hello.or(Challenge)
  .or(Welcome)
  .or(Refusal)
  .or(Beat)
  .or(Probe)
  .or(Members)
  .or(Over)
  .or(Piece)
export type Packet = typeof Packet.infer
export type PacketOf<T extends Packet['type']> = Extract<Packet, { readonly type: T }>
export type SessionPacket = PacketOf<'beat' | 'probe' | 'alive' | 'members' | 'over' | 'piece'>

const AnyHello = type({ type: "'hello'", version: 'number' })

/** The packet that a parsed JSON value is, or what is wrong with it. */
export function readPacket(value: unknown): Packet | ForeignHello | { readonly fault: string } {
  const hello = AnyHello(value)
  if (!(hello instanceof type.errors) && hello.version !== CLUSTER_VERSION) {
    return { type: 'foreign', version: hello.version }
  }
  const packet = Packet(value)
  return packet instanceof type.errors ? { fault: packet.summary.slice(0, 300) } : packet
}
