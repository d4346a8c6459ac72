import type { EngineAdapter, PauseMode } from '../../engines/adapter.ts'
import { abortOf, type EngineClient, signalWithin } from '../../engines/client.ts'
import type { EngineRecord } from './engines.ts'

/** A pause that is given up is waited for this long, so that a resume is not overtaken by it. */
const LATE_MS = 3000
const RESUME_MS = 5000

/**
 * Who has paused an engine, and who resumes it: a pause that was about to be posted is ours until a resume was confirmed, because an
 * answer that did not come says nothing about the engine.
 */
export class EnginePause {
  readonly #record: EngineRecord
  readonly #client: EngineClient
  readonly #adapter: () => EngineAdapter
  #mode: PauseMode | null = null
  /** Whether one that may have been given up took place. */
  #late: Promise<boolean> | null = null

  /** @param adapter of an engine that was looked at in this update or an earlier one */
  constructor(record: EngineRecord, client: EngineClient, adapter: () => EngineAdapter) {
    this.#record = record
    this.#client = client
    this.#adapter = adapter
  }

  /** How it is paused by us, as far as this update knows; null: it is not. */
  get mode(): PauseMode | null {
    // what an earlier update has left paused is torn, whose requests were ended
    return this.#record.pausedByUs ? (this.#mode ?? 'abort') : null
  }

  /**
   * @param tearing what the engine is torn by when it gives its weights up for the pause
   * @param save is awaited before the pause is posted, so that it is ours also for a daemon that starts after this one was killed
   * @throws CkptError what the signal was aborted with, `not_supported`, `engine_failed`, `engine_unreachable`
   */
  async pause(
    mode: PauseMode,
    tearing: string | null,
    signal: AbortSignal,
    save: () => Promise<void>,
  ): Promise<void> {
    const record = this.#record
    await Promise.race([record.late, abortOf(signal)])
    const { pausedByUs, tornBy } = record
    const call = new LateCall(signal)
    const undo = () => {
      record.pausedByUs = pausedByUs
      record.tornBy = tornBy
    }
    const beforePost = async (losesWeights: boolean) => {
      record.pausedByUs = true
      if (losesWeights) record.tornBy ??= tearing
      try {
        await save()
        signal.throwIfAborted()
      } catch (error) {
        undo()
        throw error
      }
      call.post()
    }
    // nobody asks what a call that was given up is answered with: it is owed a resume
    const refused = () => (signal.aborted ? undefined : undo())
    const posting = { beforePost, refused }
    const calling = this.#adapter().pause(this.#client, mode, call.signal, posting)
    const took = calling.then(
      () => true,
      () => false,
    )
    this.#late = took
    record.late = took.then(() => {})
    await Promise.race([calling, call.givenUp])
    this.#late = null
    record.paused = true
    this.#mode = mode
  }

  /** Resumes the engine when it was us who paused it. */
  async resume(signal: AbortSignal): Promise<void> {
    const record = this.#record
    if (!record.pausedByUs) return
    await this.#adapter().resume(this.#client, signal)
    record.pausedByUs = false
    record.paused = false
    const late = this.#late
    this.#late = null
    if (late !== null) record.late = late.then((took) => (took ? this.undo() : undefined))
  }

  /** A pause that was given up may have taken place after the resume. Never rejects. */
  async undo(): Promise<void> {
    const record = this.#record
    // it has to stay
    if (record.pausedByUs || record.tornBy !== null) return
    record.pausedByUs = true
    record.paused = true
    const late = { code: 'engine_timeout', message: 'the engine did not answer' } as const
    const within = signalWithin(new AbortController().signal, RESUME_MS, late)
    // what is owed when this fails stays in the record
    await this.resume(within).catch(() => {})
    await record.save().catch(() => {})
  }
}

/** A call that its signal ends as long as it is not posted. From then on it is given up, and ended when it is not answered soon. */
class LateCall {
  /** Rejects with what the signal was aborted with. */
  readonly givenUp: Promise<never>
  readonly #controller = new AbortController()
  #posted = false

  constructor(signal: AbortSignal) {
    this.givenUp = abortOf(signal)
    this.givenUp.catch((reason) => this.#end(reason))
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** It is about to be. */
  post(): void {
    this.#posted = true
  }

  #end(reason: unknown): void {
    if (!this.#posted) return this.#controller.abort(reason)
    setTimeout(() => this.#controller.abort(reason), LATE_MS).unref()
  }
}
