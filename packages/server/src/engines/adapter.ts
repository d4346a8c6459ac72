import type { Dialect, Failure, ReloadCounts } from '@ckpt/core'
import type { EngineClient, EngineReply } from './client.ts'

export type EngineKind = 'vllm' | 'sglang' | 'lmdeploy' | 'post'

/** How running requests are treated while the weights change; see design.md, section 7. */
export type PauseMode = 'wait' | 'keep' | 'abort'

/** What one look at the engine says. */
export interface Readiness {
  readonly ready: boolean
  /** The engine's own words when it is not. */
  readonly words: string
  /** UUIDs of its devices, where it tells them. */
  readonly deviceUuids: readonly string[] | null
  /** What its workers speak; absent or null: it does not tell. */
  readonly dialect?: Dialect | null
}

export interface UpdateBody {
  /** Key of an engine worker to the address it connects to. */
  readonly map: Readonly<Record<string, string>>
  readonly timeoutSeconds: number
  /** vLLM: the method of the worker extension. */
  readonly method: string
  readonly weightVersion: string | null
}

/** What an answer to the update request means. */
export interface UpdateVerdict {
  readonly ok: boolean
  /** The engine's own words. */
  readonly message: string
  /** The workers answered in our extension's form, so that none of them raised out of the call. */
  readonly structured: boolean
  /** Null: nothing was said of it. */
  readonly reload: ReloadCounts | null
  /** Whether any worker says that it holds a part of an update; absent: nothing was said of it. */
  readonly torn?: boolean
  /** Why the next update cannot go straight into the engine's memory; null: it may be tried; absent: nothing was said of it. */
  readonly notDirect?: string | null
}

/** What is told of a pause. */
export interface Posting {
  /**
   * Awaited when the engine was asked whether it is paused already (where it has a way to ask) and the pause is about to be posted:
   * from then on a resume is owed, whatever becomes of the call.
   *
   * @param losesWeights paused it has no weights, nor has it any when it is resumed, until an update was whole
   */
  beforePost(losesWeights: boolean): Promise<void>
  /** The engine has answered that it does not do it. */
  refused(): void
}

/** One kind of inference server; wire facts in `docs/engines.md`. Every call ends when its signal does. */
export interface EngineAdapter {
  readonly kind: EngineKind
  /** Where the update is posted when the URL names no path. */
  readonly updatePath: string
  /** One look. Throws `engine_unreachable` when there is no answer. */
  look(client: EngineClient, signal: AbortSignal): Promise<Readiness>
  updateBody(body: UpdateBody): unknown
  judge(reply: EngineReply): UpdateVerdict
  /** False: the engine was paused already, so it is not ours to resume. Throws `not_supported` where it cannot be paused. */
  pause(
    client: EngineClient,
    mode: PauseMode,
    signal: AbortSignal,
    posting: Posting,
  ): Promise<boolean>
  resume(client: EngineClient, signal: AbortSignal): Promise<void>
  /**
   * Whether a failed update leaves the answers of its ranks out of step, so that only a restart helps. Asked of an engine of
   * several ranks whose workers may have raised out of the call.
   */
  outOfStep(client: EngineClient, signal: AbortSignal): Promise<boolean>
  /**
   * After an update: caches that hold results of the old weights are flushed. Returns what could not be done.
   *
   * @param paused how; null: it serves requests
   */
  settle(
    client: EngineClient,
    paused: PauseMode | null,
    signal: AbortSignal,
  ): Promise<Failure | null>
}
