import type { FileReads } from '@ckpt/core/api/checkpoint-schemas'
import type { Failure } from '@ckpt/core/api/errors'
import type { SourceSpace, TensorTable } from '@ckpt/core/checkpoint/table'
import type { Handle, LibraryOptions } from '@ckpt/cuda'
import type { NetworkDeviceInfo, SourceReading } from '../types.ts'

/** Id of a part: what one registration put into memory. Chosen by the main thread, ascending. */
export type PartId = number

export interface StartRequest {
  readonly library: LibraryOptions
  readonly budgetBytes: number
  /** The NUMA node of each rank, which memory is taken from in turn; empty: the kernel's choice. */
  readonly rankNodes: readonly number[]
  /** Of all ranks: others read the memory over these; empty: over whatever UCX finds. */
  readonly networkDevices: readonly NetworkDeviceInfo[]
  /** null: any. */
  readonly allowedDirs: readonly string[] | null
}

export interface LoadRequest {
  readonly part: PartId
  /** Rank of the owner, for messages; null: the daemon. */
  readonly owner: number | null
  readonly files: readonly string[]
  readonly inPlace: boolean
  /** Unlink the files once everything is registered. */
  readonly consume: boolean
  /** Parts of other owners that hold the same checkpoint: a tensor that both have must agree. */
  readonly peers: readonly PartId[]
  /** Whether a tensor that does not agree with a peer's ends the load; else it is reported. */
  readonly refuseConflicts: boolean
  /** Answer when memory is taken and the bytes are on their way; `finish` must follow. */
  readonly stream: boolean
}

export interface AdoptTensor {
  readonly name: string
  readonly dtype: number
  readonly shape: readonly number[]
  readonly bytes: number
  readonly offset: number
}

export interface AdoptRequest {
  readonly part: PartId
  /** Of whom the buffers are kept for when the part is dropped. */
  readonly name: string
  readonly buffers: readonly {
    readonly buffer: Handle
    readonly tensors: readonly AdoptTensor[]
  }[]
}

/** What one registration holds: a table with one owner. */
export interface LoadedPart {
  readonly table: TensorTable
  readonly source: SourceSpace
  readonly buffers: Uint32Array
  /** Handles of the files that are held in place, with their paths. */
  readonly files: Uint32Array
  readonly filePaths: readonly string[]
  readonly layoutDigest: string
  /** Bytes of tensors. */
  readonly bytes: number
  /** Bytes of host memory that dropping the part makes free. */
  readonly pinnedBytes: number
  readonly notes: readonly string[]
  /** How its files are read; empty: it has none. */
  readonly reads: readonly FileReads[]
  /** Of a load that streams: how far its bytes are; null: all there. */
  readonly reading: SourceReading | null
  /** Tensors that a peer holds with other contents. */
  readonly conflicts: readonly { readonly peer: PartId; readonly failure: Failure }[]
}

/** What other daemons hold is copied: of their layout, read by these. */
export interface PullPartRequest {
  readonly part: PartId
  readonly table: TensorTable
  /** Per owner. */
  readonly sources: readonly SourceSpace[]
  readonly remotes: readonly RemoteBuffers[]
  /** Of each reader: they read in turns. */
  readonly devices: readonly (readonly NetworkDeviceInfo[])[]
}

export interface SharedBuffer {
  readonly buffer: Handle
  /** `/dev/shm/...` */
  readonly path: string
  /** At least what was asked for. */
  readonly bytes: number
}

/** What a rank of another daemon needs to read buffers; as secret as their bytes. */
export interface RemoteBuffers {
  readonly address: Uint8Array
  /** One a buffer. */
  readonly keys: readonly Uint8Array[]
}

/** The end of a load that streams. */
export interface FinishedLoad {
  /** Reading the files. */
  readonly seconds: number
  readonly notes: readonly string[]
}

/** Every request of the main thread with its answer. */
export interface MemoryCalls {
  start: { request: StartRequest; answer: null }
  load: { request: LoadRequest; answer: LoadedPart }
  /** Waits for the end of a load that streams. When it fails the part is still to be dropped. */
  finish: { request: { readonly part: PartId }; answer: FinishedLoad }
  /** Copies what other daemons hold into a part. */
  pull: { request: PullPartRequest; answer: LoadedPart }
  /** Ends a pull that goes on, which fails with this. */
  end_pull: { request: { readonly part: PartId; readonly failure: Failure }; answer: null }
  /** Makes a part of tensors that lie in shared buffers. */
  adopt: { request: AdoptRequest; answer: LoadedPart }
  /** Takes shared buffers, of those that earlier parts of the name left if they fit. */
  share: {
    request: { readonly name: string; readonly bytes: readonly number[] }
    answer: readonly SharedBuffer[]
  }
  /** Frees shared buffers that no part has. */
  unshare: { request: { readonly buffers: readonly Handle[] }; answer: null }
  drop: { request: { readonly part: PartId }; answer: null }
  /** Gives memory that nothing uses back to the system; `name`: its shared buffers too. */
  trim: { request: { readonly name: string }; answer: null }
  /** Lets ranks of other daemons read buffers. */
  serve: { request: { readonly buffers: readonly Handle[] }; answer: RemoteBuffers }
  /** Checks files held in place. */
  check: { request: { readonly files: readonly Handle[] }; answer: null }
  /** Frees everything; the Worker can end. */
  close: { request: null; answer: null }
}

export type MemoryCall = keyof MemoryCalls

export type MemoryRequest = {
  [K in MemoryCall]: {
    readonly id: number
    readonly call: K
    readonly request: MemoryCalls[K]['request']
  }
}[MemoryCall]

export type MemoryMessage =
  | {
      readonly type: 'answer'
      readonly id: number
      readonly answer: MemoryCalls[MemoryCall]['answer']
      readonly pinnedBytes: number
    }
  | {
      readonly type: 'failure'
      readonly id: number
      readonly failure: Failure
      /** `host_memory_exhausted`: bytes that were wanted, and how many more must be free. */
      readonly memory: { readonly wantedBytes: number; readonly shortBytes: number } | null
      readonly pinnedBytes: number
    }
  /** A file held in place was opened for writing, truncated or changed: the part is lost. */
  | { readonly type: 'broken'; readonly part: PartId; readonly path: string }
