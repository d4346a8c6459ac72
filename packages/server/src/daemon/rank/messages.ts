import type { MessagePort } from 'node:worker_threads'
import type {
  Dialect,
  Failure,
  FetchPlan,
  MapSummary,
  TensorCopies,
  PlanInput,
  RingMode,
  SourceSpace,
  TensorTable,
} from '@ckpt/core'
import type { Handle } from '@ckpt/cuda'
import type { EngineKind } from '../../engines/adapter.ts'
import type { RemoteBuffers } from '../memory/protocol.ts'
import type { LibraryOptions, RankInfo, SourceReading } from '../types.ts'

/** What a rank Worker is started with. */
export interface RankWorkerStart {
  readonly library: LibraryOptions
  readonly rank: RankInfo
  /** See {@link ranksSpin}. */
  readonly spins: boolean
  readonly port: MessagePort
}

/** In place of the number of a run: it is of no update of this daemon, which are counted from 0. */
export const NO_RUN = -1

/** How an engine is called by whoever must, when the daemon that drives the update is gone. */
export interface EngineAt {
  readonly url: string
  readonly uds: string | null
  readonly kind: EngineKind | null
  /** The daemon that calls it: for others the same URL may be another engine. */
  readonly node: number
}

/** What a rank is told before an update runs. */
export interface RunOptions {
  /** Ascends with every run of this daemon; messages of an earlier run are ignored. */
  readonly run: number
  /** Where the engine's worker connects to; null: no engine, the rank acknowledges by itself. */
  readonly address: string | null
  /** Whether an HTTP request starts the engine's worker. */
  readonly http: boolean
  /** Of one engine always the same; null: nobody knows whose worker connects. */
  readonly engine: string | null
  /** Where that one is called; null or absent: nobody calls it. */
  readonly engineAt?: EngineAt | null
  /** Per owner: native handles of its source buffers. */
  readonly buffers: readonly Uint32Array[]
  /** Per owner: the read that fills them; null: the bytes are there. */
  readonly readings: readonly (SourceReading | null)[]
  /** Milliseconds from the beginning until the engine's worker must have opened: mapped the ring, or said where its weights lie. */
  readonly openMs: number
  /** When the update must have ended, of {@link clockMs}. */
  readonly deadlineMs: number
  /** Int32s, read by the main thread, and some by other ranks, at any time: see {@link PROGRESS_ACKED} and those after it. */
  readonly progress: SharedArrayBuffer
}

/** How the ranks of an update bring each other their buckets. */
export type CollectiveOptions =
  /** By copies, in a native group. */
  | { readonly type: 'copies'; readonly group: Handle }
  /** By NCCL. */
  | {
      readonly type: 'communicator'
      /** Hex; the same for the same ranks as long as they keep it. */
      readonly id: string
      /** Ranks that have this one's device. */
      readonly sharers: number
      /** By position in the update's ranks, itself among them; null: of another process, which nothing here wakes. */
      readonly peers: readonly (Peer | null)[]
    }

/** What one rank sees of another, or tells it. */
export interface Peer {
  /** See {@link RunOptions.progress}. */
  readonly progress: SharedArrayBuffer
  /** Wakes it. */
  readonly signal: Handle
  /** See `Board`. */
  readonly board: SharedArrayBuffer
}

/** An update through a ring. */
export interface OpenOptions extends RunOptions {
  /** A plan that this Worker holds, see the request `plan`. */
  readonly planKey: string
  /** The ranks of the update, ascending. */
  readonly ranks: readonly number[]
  /** This one's position among them: its daemon may number it otherwise. */
  readonly member: number
  /** Per owner: what its buffers, which another daemon has, are read by; null: this rank does not read of it. */
  readonly remotes: readonly (RemoteBuffers | null)[]
  /** Null: the rank is alone. */
  readonly collective: CollectiveOptions | null
  readonly dialect: Dialect | null
}

/** An update straight into the engine's memory. */
export interface DirectOpenOptions extends RunOptions {
  /** A layout that this Worker holds, see the request `layout`. */
  readonly layoutKey: string
  readonly address: string
  readonly engine: string
  /** For later updates: nothing is copied, but all that is slow the first time is done once. */
  readonly prepares: boolean
  /** Per owner: whether another daemon has its bytes. */
  readonly away: readonly boolean[]
  /** Per owner: what its buffers, which another daemon has, are read by; null: this one has them, or it only prepares. */
  readonly remotes: readonly (RemoteBuffers | null)[]
  /** By position in the update's ranks, this one among them: those of its daemon, with which it shares what it fetches; null: of another. */
  readonly peers: readonly (Peer | null)[]
  /** The ranks of the update, ascending. */
  readonly ranks: readonly number[]
  /** This one's position among them. */
  readonly member: number
}

/** What a direct update of any engine worker is planned from. */
export interface SourceLayout {
  readonly table: TensorTable
  /** Of each owner. */
  readonly sources: readonly SourceSpace[]
}

/** What a rank has of reads of other hosts' memory. */
export interface ReadHandles {
  /** 0: none. */
  readonly p2p: Handle
  readonly peers: readonly Handle[]
  readonly remotes: readonly Handle[]
}

/** Index into {@link RunOptions.progress}: buckets acknowledged; of a direct update: groups of copies that are complete, and chunks that this rank needs no more. */
export const PROGRESS_ACKED = 0
/** Lists sent; 1 when an engine worker was told to hold still for a direct update. From 1 on a failure leaves the engine torn. */
export const PROGRESS_SENT = 1
/** 1: the engine's worker has taken everything and has left, whatever its engine's request still waits for. */
export const PROGRESS_LEFT = 2
/** Segments that this rank has copied into its ring, in their order; of a direct update: chunks that it needs no more, in theirs. */
export const PROGRESS_COPIED = 3
/** Of a direct update: chunks that this rank has fetched, of those that it fetches. */
export const PROGRESS_FETCHED = 4
/** Of a direct update: native handle of the memory that it fetches them into. */
export const PROGRESS_SLOTS = 5
export const PROGRESS_BYTES = 24

/** Requests are answered with an {@link RankAnswer} of the same id. */
export type RankRequest =
  | { readonly type: 'memory' }
  /** Without input it asks whether the plan is held; with it the rank makes the plan and keeps it. */
  | { readonly type: 'plan'; readonly key: string; readonly input: PlanInput | null }
  /** As `plan`, and pickles the lists of the plan it makes. */
  | { readonly type: 'prepare'; readonly key: string; readonly input: PlanInput | null }
  /** How fast host memory reaches the device. `stop`, of a {@link StopFlag}, ends it early. */
  | { readonly type: 'measure'; readonly stop: SharedArrayBuffer }
  /** Makes updates that nobody sees, with a worker of its own at `address`. `stop`, of a {@link StopFlag}, ends it early. */
  | { readonly type: 'rehearse'; readonly address: string; readonly stop: SharedArrayBuffer }
  | { readonly type: 'group_create'; readonly members: number }
  | { readonly type: 'group_destroy'; readonly group: number }
  /** `sharers`: most of its members that have the same device; `processes`: how many daemons they belong to. */
  | { readonly type: 'communicator_id'; readonly sharers: number; readonly processes: number }
  | { readonly type: 'communicator_drop' }
  /** Allocates and exports the ring, joins the group, binds the engine's address. */
  | { readonly type: 'open'; readonly options: OpenOptions }
  /** Without input it asks whether the layout is held; with it the rank keeps it. */
  | { readonly type: 'layout'; readonly key: string; readonly input: SourceLayout | null }
  /** Binds the engine's address. */
  | { readonly type: 'open_direct'; readonly options: DirectOpenOptions }
  /** Pinned memory that a Worker has left which has died. */
  | { readonly type: 'free_buffers'; readonly buffers: readonly Handle[] }
  /** Streams of a Worker that has died: nothing is enqueued in them any more when they have ended. */
  | { readonly type: 'end_streams'; readonly streams: readonly Handle[] }
  /** What the map is about that this engine's worker has sent last, and where this tensor lies. */
  | { readonly type: 'engine_map'; readonly engine: string; readonly tensor: string | null }
  /** Sends the abort message to whoever still waits at these addresses, until they are gone. */
  | {
      readonly type: 'release_left'
      readonly cutOff: readonly string[]
      /** Of updates that had ended: told whenever they come, which is not waited for. */
      readonly ended: readonly string[]
      readonly limitMs: number
    }

export interface MemoryAnswer {
  readonly freeBytes: number
  readonly totalBytes: number
}

/** The plan as the main thread needs it; `null` from a rank that does not hold it. */
export interface PlanSummary {
  readonly digest: string
  readonly mode: RingMode
  readonly ringBytes: number
  readonly bucketBytes: number
  readonly bucketCount: number
  readonly tensorCount: number
  readonly totalBytes: number
  /** Bytes of the buckets `[0, g]`. */
  readonly bytesThrough: Float64Array
  /** Tensors of the buckets `[0, g]`. */
  readonly tensorsThrough: Uint32Array
}

export interface OpenAnswer {
  /** Bytes in use on the device before and after the ring was allocated. */
  readonly bytesBefore: number
  readonly bytesAfter: number
  /** What copies out of the checkpoint, of an update through a ring; a direct one tells it with `begun`. */
  readonly streams: readonly Handle[]
}

/** A placement map as the main thread is told of it: the whole one of a large model has some ten megabytes. */
export interface EngineMapSummary extends MapSummary {
  readonly digest: string
  /** null: none was asked for, or the map has none of that name. */
  readonly tensor: TensorCopies | null
}

export interface RankAnswers {
  memory: MemoryAnswer
  plan: PlanSummary | null
  prepare: PlanSummary | null
  /** null: it was stopped, or there is hardly any device memory. */
  measure: { readonly bytesPerSecond: number | null }
  rehearse: { readonly runs: number }
  group_create: { readonly group: number }
  group_destroy: null
  communicator_id: { readonly id: string }
  communicator_drop: null
  open: OpenAnswer
  layout: boolean
  open_direct: OpenAnswer
  free_buffers: null
  /** False: something is left in them. */
  end_streams: { readonly ended: boolean }
  /** null: this engine has sent none. */
  engine_map: EngineMapSummary | null
  release_left: { readonly left: readonly string[] }
}

export type RankMessage =
  | { readonly type: 'request'; readonly id: number; readonly request: RankRequest }
  /** Every rank is open: run. The Worker's thread is busy from here until it has reported `closed`. */
  | { readonly type: 'begin'; readonly run: number }
  /** The engine's request has returned; also after the run has closed, while it keeps a ring or a socket. */
  | {
      readonly type: 'http'
      readonly run: number
      readonly ok: boolean
      readonly status: number
      readonly message: string
    }
  /**
   * Every engine worker has opened: lists may be sent, or, in a direct update, its weights be held still. Until then no engine
   * is torn by a failure.
   */
  | { readonly type: 'announce'; readonly run: number }
  /**
   * Every engine worker holds its weights still: copy. `fetch`: what this daemon's ranks read of others' for that; null: nothing.
   * `shares`: what several of them need one brings, and the others take it from that one's engine.
   */
  | {
      readonly type: 'copy'
      readonly run: number
      readonly fetch: FetchPlan | null
      readonly shares: boolean
    }
  /** It will not be done directly. */
  | {
      readonly type: 'leave'
      readonly run: number
      readonly reason: string
      /** Until the engine's worker must have left. */
      readonly leaveMs: number
    }
  /** Every rank has every bucket: end the conversation. */
  | { readonly type: 'release'; readonly run: number }
  /** `leaveMs`: until the engine's worker must have left. */
  | {
      readonly type: 'abort'
      readonly run: number
      readonly failure: Failure
      readonly leaveMs: number
    }
  | { readonly type: 'close' }

/** Busy intervals of a stage as pairs of start and end, ascending, in milliseconds of {@link clockMs}. */
export interface StageIntervals {
  readonly h2d: Float64Array
  readonly broadcast: Float64Array
  readonly reload: Float64Array
}

export type RankEvent =
  /** The engine's worker has mapped the ring. */
  | { readonly type: 'opened' }
  /**
   * The engine's worker has said where its weights lie, and the copies are planned: so many groups out of its own host's memory,
   * and bytes in all, of which `shareableBytes` can come from other ranks of its host that need the same.
   * `needs`: what of other daemons' memory, see `SourceRanges`.
   */
  | {
      readonly type: 'looked'
      readonly groups: number
      readonly bytes: number
      readonly shareableBytes: number
      readonly needs: Float64Array
    }
  /** The engine's worker holds its weights still. `streams` will write them. */
  | { readonly type: 'begun'; readonly streams: readonly Handle[] }
  /** Nothing was changed, and `leave` is to follow. `lasts`: no network leads to another host's memory. */
  | { readonly type: 'not_direct'; readonly reason: string; readonly lasts?: boolean }
  /** Every bucket is acknowledged, or every copy complete. `readBy`: how other daemons' memory was read, see `P2p.transport`. */
  | {
      readonly type: 'transferred'
      readonly readBy: readonly string[]
      /** That came from other ranks' engines, of a direct update. */
      readonly takenBytes: number
    }
  | { readonly type: 'finished'; readonly dialect: Dialect | null }
  /**
   * `connected`: whether a worker of the engine has ever connected; `dialect`: what its error has
   * told of it, null: nothing that was not known.
   */
  | {
      readonly type: 'failed'
      readonly failure: Failure
      readonly connected: boolean
      readonly dialect: Dialect | null
    }
  | {
      readonly type: 'closed'
      /** Bytes of a ring that an engine or a copy may still use; 0 when it was freed. */
      readonly quarantinedBytes: number
      /** No copy reads the checkpoint any more; else the report `settled` follows. */
      readonly settled: boolean
      /** Bytes in use on the device when every bucket was there, and now; null: not seen. */
      readonly bytesPeak: number | null
      readonly bytesAfter: number | null
      readonly stages: StageIntervals
      /** Milliseconds of each list, in order: see `turnaround` of the report. */
      readonly turnaroundsMs: Float64Array
    }

export type RankReport =
  | { readonly type: 'ready'; readonly signal: number; readonly memory: MemoryAnswer }
  /** The Worker could not start, or cannot go on: it must be terminated. */
  | { readonly type: 'dead'; readonly failure: Failure }
  | { readonly type: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly type: 'refusal'; readonly id: number; readonly failure: Failure }
  | { readonly type: 'event'; readonly run: number; readonly event: RankEvent }
  /** No copy of this run reads the checkpoint any more. */
  | { readonly type: 'settled'; readonly run: number }
  /** A conversation's socket stays after its run, for a worker that has not left; then that it went. */
  | { readonly type: 'kept' | 'left'; readonly address: string }
  /** The communicator that the rank has now; 0: none. */
  | { readonly type: 'communicator'; readonly communicator: Handle }
  | { readonly type: 'reads'; readonly handles: ReadHandles }
  /** Pinned memory that the rank keeps for direct updates. */
  | { readonly type: 'pinned'; readonly buffers: readonly Handle[] }
  /** The quarantined ring of a run was freed. */
  | { readonly type: 'ring_freed'; readonly run: number; readonly bytes: number }
