import type {
  BuffersAnswer,
  BuffersRequest,
  CheckpointDetail,
  CheckpointSummary,
  DropAnswer,
  GatherAnswer,
  Metas,
  RegisterAnswer,
  RegisterRequest,
  TensorsRequest,
} from '@ckpt/core'
import type { PullPartRequest } from '../memory/protocol.ts'
import type { HeldVersion, VersionLease } from '../types.ts'

/** What other daemons hold and let this one read. */
export interface Offer extends Omit<PullPartRequest, 'part'> {
  readonly version: string | null
  /** They hold it no more: whatever was read of it is nothing. Its reason is a CkptError. */
  readonly gone: AbortSignal
  /** Once all was read. @throws CkptError it may have been something else */
  confirm(): Promise<void>
}

/**
 * What this daemon holds: versions of checkpoints in pinned host memory, and who uses them. The object itself only keeps
 * the books; a Worker does everything native, so no call blocks the event loop.
 */
export interface Registry {
  /**
   * Registers files as a new version of `name`.
   *
   * @param owner rank of the rank socket that was called; null: the daemon as a whole
   * @throws CkptError `checkpoint_exists`, `path_not_allowed`, `file_not_found`, `file_unreadable`, `format_not_supported`,
   *   `safetensors_invalid`, `tensor_conflict`, `tensor_missing`, `file_changed`, `host_memory_exhausted`, `queue_full`
   */
  register(name: string, request: RegisterRequest, owner: number | null): Promise<RegisterAnswer>
  /**
   * Copies what other daemons hold as a new version of `name`.
   *
   * @throws CkptError `checkpoint_exists`, `host_memory_exhausted` before anything is read, `node_lost`, `file_changed`, `not_supported`
   *   without UCX, what `offer.gone` and `offer.confirm` say
   */
  pull(name: string, offer: Offer, replace: boolean): Promise<RegisterAnswer>
  /** Drops every version of `name`; `force` gives unused pinned memory back to the system. @throws `checkpoint_busy` */
  drop(name: string, options: { force: boolean }): Promise<DropAnswer>
  /** An update of `name` was accepted: until the claim is given back no other checkpoint takes its place. */
  claim(name: string): () => void
  /**
   * The newest version, held until the lease is released. When the last one that was registered with `wait: false` could not
   * be read, the first call throws why, and only the next one gets the version before it.
   *
   * @throws CkptError `checkpoint_not_found`, `checkpoint_empty`, `checkpoint_invalid`, `tensor_conflict` (two ranks hold
   *   different bytes under one name), `not_supported` (only other hosts hold it)
   */
  lease(name: string): VersionLease
  /** Whether the version's in-place files are what they were. @throws `file_changed` with the file's name */
  check(version: HeldVersion): Promise<void>
  /**
   * What an update of `name` would send; no tensors when nothing is held. A version that could not be read is told as by
   * {@link Registry.lease}, at every call, and still by the next `lease`.
   *
   * @throws CkptError as `lease`, except `checkpoint_not_found` and `checkpoint_empty`
   */
  gather(name: string): GatherAnswer
  /** Whether something is being registered, read or dropped. */
  readonly busy: boolean
  list(): CheckpointSummary[]
  /** @throws `checkpoint_not_found` */
  describe(name: string): CheckpointDetail
  /** Shared memory that a trainer writes tensors into. A buffer belongs to one checkpoint name. */
  buffers(name: string, request: BuffersRequest): Promise<BuffersAnswer>
  /** Frees buffers whose trainer is gone, by their ids. Those with a version in them stay. */
  abandon(buffers: readonly string[]): Promise<void>
  /** Registers tensors that a trainer has written into buffers of {@link Registry.buffers}, without a copy. */
  tensors(name: string, request: TensorsRequest): Promise<RegisterAnswer>
  /** Where the tensors of the last gathered (or loaded) checkpoint lie. */
  metas(): Metas
  /** @throws CkptError `not_supported` for owners that only Mooncake can read */
  loadMetas(metas: Metas): void
  memory(): { pinned_bytes: number; budget_bytes: number }
  /** Frees everything and ends the Worker. */
  close(): Promise<void>
}
