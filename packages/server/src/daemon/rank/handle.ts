import type { Failure, FetchPlan } from '@ckpt/core'
import type { Handle } from '@ckpt/cuda'
import type { RankInfo } from '../types.ts'
import type { MemoryAnswer, RankAnswers, RankEvent, RankRequest } from './messages.ts'

/** What a rank tells the run that uses it. */
export type RankListener = (event: RankEvent, rank: RankInfo) => void

/** One rank as updates drive it, wherever its Worker runs. Nothing here blocks. */
export interface RankHandle {
  readonly rank: RankInfo
  /** Rank of its daemon among the daemons; 0: this one. */
  readonly node: number
  /** Why this rank cannot be used any more; null while it can. */
  readonly dead: Failure | null
  /** Whether an update uses it. */
  readonly busy: boolean
  /** Whether it owes an answer to a request. */
  readonly owes: boolean
  /** Free and total bytes of its device when they were said last. */
  readonly memory: MemoryAnswer
  /** What wakes its Worker; 0: nothing in this process does. */
  readonly signal: Handle
  /** See `Board`; empty: its Worker is in another process. */
  readonly board: SharedArrayBuffer
  request<T extends RankRequest['type']>(
    request: Extract<RankRequest, { type: T }>,
  ): Promise<RankAnswers[T]>
  readMemory(): Promise<MemoryAnswer>
  /**
   * From now on `listener` gets the events of `run`, until `closed`. A Worker that dies leaves its `ringBytes` behind.
   *
   * @param progress what the rank says of it, see `RunOptions.progress`
   */
  listen(run: number, ringBytes: number, listener: RankListener, progress: SharedArrayBuffer): void
  unlisten(): void
  begin(run: number): void
  announce(run: number): void
  copy(run: number, fetch: FetchPlan | null, shares: boolean): void
  leave(run: number, reason: string, leaveMs: number): void
  release(run: number): void
  http(run: number, result: { ok: boolean; status: number; message: string }): void
  /** First step of an abort: to be called for every rank of the update before {@link RankHandle.abort} is for any. */
  raiseAbort(): void
  abort(run: number, failure: Failure, leaveMs: number): void
  /** Resolves when no copy of a run that closed unsettled reads the checkpoint any more. */
  settled(run: number): Promise<void>
}

/**
 * A rank ends its run by this when nobody can ask it any more.
 *
 * @param left what its Worker leaves behind; `settled`: as of the event `closed`
 */
export function tellGone(
  listener: RankListener,
  rank: RankInfo,
  failure: Failure,
  left: { readonly quarantinedBytes: number; readonly settled: boolean },
): void {
  listener({ type: 'failed', failure, connected: true }, rank)
  const none = new Float64Array(0)
  const stages = { h2d: none, broadcast: none, reload: none }
  const unknown = { bytesPeak: null, bytesAfter: null, turnaroundsMs: none, stages }
  listener({ type: 'closed', ...left, ...unknown }, rank)
}

/** A rank whose daemon is gone. */
export interface LostRank {
  readonly node: number
  readonly failure: Failure
}

/** The ranks that updates may use. */
export interface Ranks {
  /** Every rank there is, ascending. */
  readonly links: readonly RankHandle[]
  /** The numbers of those that an update without a choice of its own takes. @throws CkptError `node_lost`: `all`, and some are gone */
  all(require: 'all' | 'survivors'): number[]
  /** Null: it is there, or never was. */
  lost(rank: number): LostRank | null
  /** The ranks of these numbers, each with a living Worker. @throws CkptError `bad_request`, and why one cannot be used */
  use(ranks: readonly number[]): Promise<RankHandle[]>
  /**
   * Resolves when no copy of an earlier direct update writes an engine's memory any more, of a Worker that has died neither.
   *
   * @param ranks of the update that is to come: daemons that are there for updates of their own are asked if they take part in it
   */
  quiet(ranks?: readonly number[]): Promise<void>
  /** Whether a worker of an engine may still wait at this address. */
  keeps(address: string): boolean
}
