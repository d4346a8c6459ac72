import type { MessagePort } from 'node:worker_threads'
import type {
  ClusterNode,
  ClusterTimes,
  Failure,
  MembershipEvent,
  MessageStart,
  NodeInfo,
} from '@ckpt/core'
import type { Handle } from '@ckpt/cuda'
import type { TcpAddress } from '../options.ts'
import type { LibraryOptions } from '../types.ts'
import type { ClusterKeys } from './keys.ts'

/** What a Worker of the cluster starts with. */
export interface ClusterWorkerStart {
  /** For the signal that wakes it. */
  readonly library: LibraryOptions
  readonly nodeRank: number
  readonly nodes: number
  readonly leader: TcpAddress
  readonly times: ClusterTimes
  readonly incarnation: string
  readonly info: NodeInfo
  readonly keys: ClusterKeys
  /** Two f64 that a follower's Worker keeps: the number of its living session, and until when it is known to live. */
  readonly lease: SharedArrayBuffer
  readonly port: MessagePort
}

/** One message between daemons on its way between main thread and Worker. The buffers are transferred. */
export interface CarriedMessage {
  readonly node: ClusterNode
  readonly kind: MessageStart['kind']
  /** Of the request; 0 with a post. */
  readonly id: number
  /** The body as JSON text, then the parts; each has its buffer for itself. */
  readonly blobs: readonly Uint8Array<ArrayBuffer>[]
}

/** To the Worker. */
export type ClusterCommand =
  | { readonly type: 'message'; readonly message: CarriedMessage }
  | { readonly type: 'close'; readonly reason: string }

/** From the Worker. */
export type ClusterReport =
  | { readonly type: 'ready'; readonly signal: Handle; readonly address: string }
  | Extract<MembershipEvent<never>, { type: 'joined' | 'lost' | 'members' }>
  | { readonly type: 'message'; readonly message: CarriedMessage }
  /** Why a follower has no leader, as far as it knows; again when that changes. */
  | { readonly type: 'alone'; readonly message: string }
  /** For the log. */
  | { readonly type: 'warning'; readonly message: string }
  /** It could not start, or cannot go on: it must be terminated. */
  | { readonly type: 'dead'; readonly failure: Failure }
