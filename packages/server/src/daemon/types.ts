import type { RemoteBuffers } from './memory/protocol.ts'
import type { Failure, SourceSpace, TensorTable } from '@ckpt/core'
import type { LibraryOptions, NetworkDeviceInfo, RankInfo } from '@ckpt/cuda'
import type { SpinChoice } from './rank/spin.ts'

/** A read that fills an owner's source space from its beginning to its end. */
export interface SourceReading {
  /** Native handle; it lives as long as the version. */
  readonly read: number
  /** Where in the space each piece of the read begins, ascending: pieces `[0, i)` fill the space below `pieceStarts[i]`. */
  readonly pieceStarts: Float64Array
  /** Of the files that are read. */
  readonly bytes: number
  /** Milliseconds of `clockMs`. */
  readonly startedMs: number
}

/** One version of a checkpoint in this daemon's memory. Immutable once it exists. */
export interface HeldVersion {
  readonly name: string
  /** What the user calls it; null when not told. */
  readonly version: string | null
  /** Ascends with every registration of this daemon: the newest version has the highest. */
  readonly serial: number
  readonly table: TensorTable
  /** Per owner of `table.owners`. */
  readonly sources: readonly SourceSpace[]
  /** Per owner: native buffer handle of each of its source buffers. */
  readonly buffers: readonly Uint32Array[]
  /** Per owner: the read that its bytes come from; null: they are there. */
  readonly readings: readonly (SourceReading | null)[]
  /**
   * Per owner: the ranks that take turns copying from it. Any rank of the daemon can, because the memory is the daemon's:
   * where none of these takes part in an update, every rank that does may take their place.
   */
  readonly ownerRanks: readonly (readonly number[])[]
  readonly bytes: number
  /** Per owner: the node rank of its daemon, of several; 0: this one, which leads them. */
  readonly ownerNodes: readonly number[]
  /** Hex digest of names, dtypes, shapes, owners and offsets: equal layouts share plans. */
  readonly layoutDigest: string
  /** Native file handles held in place (to be checked before the first copy and before release). */
  readonly files: readonly number[]
}

/** A version that an update holds: it is not dropped before `release`. */
export interface VersionLease {
  readonly version: HeldVersion
  /**
   * Resolves with the seconds that reading took when every byte is in host memory and the files are known to be what they were;
   * 0 for a version that was complete before.
   */
  readonly complete: Promise<number>
  /** Whether its in-place files are what they were: throws `file_changed` with a file's name; null: it has none. */
  readonly check: (() => Promise<void>) | null
  /**
   * Lets ranks of other daemons read what these owners hold.
   *
   * @param nodes node ranks of owners' daemons
   * @returns per owner of the version; null: of another daemon
   * @throws CkptError `not_supported` where there is no UCX
   */
  serve(nodes: ReadonlySet<number>): Promise<(RemoteBuffers | null)[]>
  /** `succeeded`: older versions of the name are dropped now. */
  release(succeeded: boolean): void
}

export type { LibraryOptions, NetworkDeviceInfo, RankInfo }

export interface DaemonOptions {
  readonly library: LibraryOptions
  readonly ranks: readonly RankInfo[]
  /** Directories that files may be registered from; null: any. Resolved paths. */
  readonly allowedDirs: readonly string[] | null
  /** URL prefixes of engines that may be contacted; null: loopback and Unix sockets. */
  readonly allowedEngines: readonly string[] | null
  /** Most bytes of pinned host memory; null: 80 % of the machine's. */
  readonly hostMemoryBytes: number | null
  /** Whether other checkpoints go, the one not used for longest first, when host memory has no room for a new one. */
  readonly evict: boolean
  readonly inPlace: 'never' | 'always' | 'consume'
  /** Private 0700 directory: journal, engine sockets. */
  readonly stateDir: string
  readonly ringBytes: number | null
  readonly bucketBytes: number | null
  readonly memoryFraction: number
  /** Whether ranks keep a processor while an update moves. */
  readonly spin: SpinChoice
  /** How ranks bring each other their buckets: by copies between their rings, or by NCCL. */
  readonly broadcast: 'copies' | 'nccl'
  /** So long a communicator is kept without an update. */
  readonly idleCommunicatorMs: number
}

export type Result<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly failure: Failure }
