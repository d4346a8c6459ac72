import type { Dialect } from '@ckpt/core'
import type { Handle, LibraryOptions } from '@ckpt/cuda'
import type { Fault } from './faults.ts'
import type { ShardedBy } from './shard.ts'
import type { UpdateWay } from './way.ts'

/** What a rank's Worker is started with. */
export interface RankSettings {
  readonly library: LibraryOptions
  readonly rank: number
  /** Tensor-parallel size. */
  readonly size: number
  readonly shardedBy: ShardedBy
  readonly device: number
  readonly dialect: Dialect
  /** Whether direct updates are taken. */
  readonly direct: boolean
  /** Native signal whose abort bit makes the rank leave whatever it waits for. */
  readonly signal: Handle
  /** How long a daemon that has disconnected may take to come back. */
  readonly graceMs: number
}

/** How far an update has come: nothing is changed yet, lists are loaded or copies made, the post hook runs. */
export type UpdatePhase = 'begin' | 'lists' | 'copies' | 'hook'

/** How an update of one rank has ended. */
export interface RankUpdate {
  /** In which it failed; null: it did not. */
  readonly phase: UpdatePhase | null
  /** That were loaded out of the ring. */
  readonly tensors: number
  /** The daemon has copied all into the parameters itself. */
  readonly placed: boolean
  /** Why a daemon cannot copy into the parameters; null: it can, or nobody asks. */
  readonly notPlaced: string | null
}

export type RankRequest =
  | { readonly type: 'start'; readonly settings: RankSettings }
  | {
      readonly type: 'update'
      readonly way: UpdateWay
      /** Null: the rank must not connect. */
      readonly address: string | null
      readonly timeoutMs: number
      readonly faults: readonly Fault[]
    }
  | { readonly type: 'hash' }
  | { readonly type: 'close' }

/** A request and the number that its answer carries. */
export interface RankEnvelope {
  readonly id: number
  readonly request: RankRequest
}

export interface HeldTensor {
  /** safetensors' name of the dtype. */
  readonly dtype: string
  readonly shape: readonly number[]
  /** Hex. */
  readonly sha256: string
}

/** A request is done; `error` says why it failed. */
export interface Done {
  readonly error: string | null
  /** Of `hash`. */
  readonly tensors?: Record<string, HeldTensor>
  /** Of `update`, also of one that failed. */
  readonly update?: RankUpdate
}

export type RankReply =
  | ({ readonly type: 'done'; readonly id: number } & Done)
  | { readonly type: 'torn'; readonly torn: boolean }
  /** A fault holds it. */
  | { readonly type: 'holding' }
  /** The fault `exit` strikes. */
  | { readonly type: 'exit' }
