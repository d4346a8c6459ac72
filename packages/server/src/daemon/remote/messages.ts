import type { Failure, FetchPlan, PlanInput } from '@ckpt/core'
import { type } from 'arktype'
import type { RankInfo } from '../types.ts'
import { EngineMark } from '../updates/journal.ts'
import type {
  DirectOpenOptions,
  OpenOptions,
  RankEvent,
  RankRequest,
  RunOptions,
} from '../rank/messages.ts'
import type { EngineAnswer, EngineCall } from '../../engines/host.ts'
import type { RemoteBuffers } from '../memory/protocol.ts'
import type { EngineAddress } from '../../engines/url.ts'
import type { Packed } from './pack.ts'

/** The way from one daemon to another. What was sent comes in order, or not at all once the other one is lost. */
export interface NodeChannel {
  /** @throws CkptError what the other one has thrown; `node_lost`, `leader_lost`, `update_timeout` */
  request(message: Packed, limitMs: number): Promise<Packed>
  post(message: Packed): void
}

/** Of a request that takes as long as an update does: the update has a deadline of its own. */
export const UPDATE_LIMIT_MS = 86_400_000
/** Of one that is answered at once, or when a rank that is busy has come to it. */
export const CALL_LIMIT_MS = 60_000

/** What a run's options have that only its own daemon knows: its memory, its clock. */
type Remote<T extends RunOptions> = Omit<
  T,
  'buffers' | 'readings' | 'progress' | 'deadlineMs' | 'collective' | 'peers'
>
export type RemoteOpen = Remote<OpenOptions>
export type RemoteDirectOpen = Remote<DirectOpenOptions>

/** In place of those. */
export interface RunPlace {
  /** Of this update, see the request `lease`. */
  readonly lease: number
  /** Owners of the checkpoint, all daemons' together, and the first one of this daemon. */
  readonly owners: number
  readonly firstOwner: number
  /** Until the update must have ended. */
  readonly leftMs: number
}

/** A plan's input with its layout by key, see the request `layout`. */
export type RemotePlanInput = Omit<PlanInput, 'table' | 'sources'> & { readonly layout: string }

/**
 * By position in an update's ranks: the number of a rank that the same daemon has, as that numbers it; null: another one has it.
 */
export type RanksHere = readonly (number | null)[]

/** A communicator among all ranks of an update. */
export interface RemoteMeeting {
  readonly id: string
  readonly sharers: number
  readonly here: RanksHere
}

/** A {@link RankRequest} to a rank of another daemon. */
export type RemoteRankRequest =
  | Extract<
      RankRequest,
      { type: 'memory' | 'communicator_drop' | 'engine_map' | 'communicator_id' }
    >
  | { readonly type: 'plan'; readonly key: string; readonly input: RemotePlanInput | null }
  /** `layout`: see the request of that name; null: whether the rank holds it is asked. */
  | { readonly type: 'layout'; readonly key: string; readonly layout: string | null }
  | {
      readonly type: 'open'
      readonly options: RemoteOpen
      readonly place: RunPlace
      /** Null: the rank is alone. */
      readonly meeting: RemoteMeeting | null
    }
  | {
      readonly type: 'open_direct'
      readonly options: RemoteDirectOpen
      readonly place: RunPlace
      readonly here: RanksHere
    }

/** What the leader asks another daemon. */
export type NodeRequest =
  /**
   * Holds the newest version of a checkpoint. `held`: the layout of it that the leader has. `gathers`: from now on this daemon's metas
   * tell where it lies.
   */
  | {
      readonly op: 'lease'
      readonly name: string
      readonly lease: number
      readonly updateId: string
      readonly held: string | null
      readonly gathers: boolean
    }
  /** Lets other daemons' ranks read what it holds: see `VersionLease.serve`. */
  | { readonly op: 'serve'; readonly lease: number }
  /** Answered when its files have been read. */
  | { readonly op: 'complete'; readonly lease: number }
  /** Whether its files in place are what they were. */
  | { readonly op: 'check'; readonly lease: number }
  /** Keeps a layout of all daemons. Without columns it asks whether that is held. */
  | { readonly op: 'layout'; readonly layout: string; readonly columns: Uint8Array | null }
  /** Workers that have died are replaced. Ranks are numbered as that daemon numbers them, here and everywhere. */
  | { readonly op: 'use'; readonly ranks: readonly number[] }
  /** Answered when nothing writes an engine's memory any more. */
  | { readonly op: 'quiet' }
  /** Answered at once: what its ranks have come to in their runs was posted before. */
  | { readonly op: 'said' }
  | { readonly op: 'rank'; readonly rank: number; readonly request: RemoteRankRequest }
  /** An HTTP request to an engine, from there. `call`: ends it, see {@link NodePost}. */
  | { readonly op: 'engine'; readonly call: number; readonly request: EngineCall }
  /** See `EngineHost.listener`. */
  | { readonly op: 'engine_listener'; readonly address: EngineAddress }

export interface NodeAnswers {
  /** null: nothing of that name is held. */
  lease: LeaseAnswer | null
  /** Per owner of its own. */
  serve: readonly (RemoteBuffers | null)[]
  complete: { readonly seconds: number }
  check: null
  layout: { readonly held: boolean }
  use: { readonly workers: readonly number[] }
  quiet: null
  said: null
  engine: EngineAnswer
  engine_listener: { readonly listener: string | null }
}

export interface LeaseAnswer {
  readonly version: string | null
  readonly layout: string
  /** See `HeldVersion`. */
  readonly layoutDigest: string
  /** See `LayoutColumns`; null: the leader has it. */
  readonly columns: Uint8Array | null
  /** Per owner: the ranks that copy from it. */
  readonly ownerRanks: readonly (readonly number[])[]
  /** Its files are still being read. */
  readonly reading: boolean
  readonly inPlace: boolean
}

/** What the leader tells a rank of another daemon in a run, see `RankMessage`. */
export type RemoteTell =
  | { readonly type: 'begin' | 'announce' | 'release' | 'raise_abort' }
  | { readonly type: 'copy'; readonly fetch: FetchPlan | null; readonly shares: boolean }
  | { readonly type: 'leave'; readonly reason: string; readonly leaveMs: number }
  | { readonly type: 'abort'; readonly failure: Failure; readonly leaveMs: number }
  | {
      readonly type: 'http'
      readonly ok: boolean
      readonly status: number
      readonly message: string
    }

/** What a guest that has no ranks asks the leader, to copy a checkpoint into its own memory. A session has one at a time. */
export type PullRequest =
  /** Holds all that the daemons have of the checkpoint until `end_pull`, or until the guest is gone. `version` null: any. */
  | {
      readonly op: 'pull'
      readonly name: string
      readonly version: string | null
    }
  /** It has been read. Fails when what was read may have been something else. */
  | { readonly op: 'end_pull' }

export interface PullAnswer {
  readonly version: string | null
  /** Of all daemons, see `LayoutColumns`. */
  readonly columns: Uint8Array
  /** Per owner. */
  readonly remotes: readonly RemoteBuffers[]
}

export type NodePost =
  | { readonly op: 'tell'; readonly rank: number; readonly run: number; readonly tell: RemoteTell }
  | { readonly op: 'end_engine'; readonly call: number; readonly failure: Failure }
  /** Its ranks as the leader numbers them: they follow each other from this one on. */
  | { readonly op: 'numbered'; readonly firstRank: number }
  | { readonly op: 'end_lease'; readonly lease: number; readonly succeeded: boolean }
  /** Those of {@link NodeDescription}: they are the leader's from now on. */
  | { readonly op: 'marks_taken' }

/** What a daemon tells the leader. */
export type LeaderPost =
  | {
      readonly op: 'event'
      readonly rank: number
      readonly run: number
      readonly event: RankEvent
      /** See `RunOptions.progress`. */
      readonly progress: Int32Array
      /** The sender's clock. */
      readonly nowMs: number
    }
  | {
      readonly op: 'progress'
      readonly rank: number
      readonly run: number
      readonly progress: Int32Array
    }
  | { readonly op: 'settled'; readonly rank: number; readonly run: number }

/** What a daemon tells of itself when it comes. */
export const NodeDescription = type({
  /** Its own: numbered from 0. */
  ranks: type({
    rank: 'number.integer >= 0',
    device: 'number.integer >= 0',
    deviceName: 'string',
    key: 'string',
    uuid: 'string',
    numaNode: 'number.integer',
    'networkDevices?': type({ name: 'string', bytesPerSecond: 'number > 0' }).array(),
  })
    .array()
    .atLeastLength(1),
  /** Where the sockets of its engines' workers lie. */
  socketDir: /^\//,
  /** Engines that were torn when it lost its leader, which it then paused where it could. */
  marks: EngineMark.array(),
})
export interface NodeDescription {
  readonly ranks: readonly RankInfo[]
  readonly socketDir: string
  readonly marks: readonly EngineMark[]
}
