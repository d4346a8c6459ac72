import type { Dialect } from '@ckpt/core'
import type { Handle, LibraryOptions } from '@ckpt/cuda'
import type { Fault } from './faults.ts'

/** What a rank's Worker is started with. */
export interface RankSettings {
  readonly library: LibraryOptions
  readonly rank: number
  /** Tensor-parallel size. */
  readonly size: number
  readonly device: number
  readonly dialect: Dialect
  /** Native signal whose abort bit makes the rank leave whatever it waits for. */
  readonly signal: Handle
  /** How long a daemon that has disconnected may take to come back. */
  readonly graceMs: number
}

export type RankRequest =
  | { readonly type: 'start'; readonly settings: RankSettings }
  | {
      readonly type: 'update'
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

export type RankReply =
  /** The request is done; `error` says why it failed. */
  | {
      readonly type: 'done'
      readonly id: number
      readonly error: string | null
      readonly tensors?: Record<string, HeldTensor>
    }
  | { readonly type: 'torn'; readonly torn: boolean }
  /** The fault `exit` strikes. */
  | { readonly type: 'exit' }
