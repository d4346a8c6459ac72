import { CkptError, type Dialect, type EngineReport, type Failure, type Phase } from '@ckpt/core'
import type { EngineAdapter, PauseMode, UpdateBody, UpdateVerdict } from '../../engines/adapter.ts'
import { EngineClient, reasonOf, signalWithin } from '../../engines/client.ts'
import { adapterOf, detectEngine } from '../../engines/detect.ts'
import type { EngineHost } from '../../engines/host.ts'
import { updateNatively } from '../../engines/native-ipc.ts'
import { engineStart, NOT_RUNNING } from '../../engines/start.ts'
import {
  missesExtension,
  missesMethod,
  type WithoutExtension,
  withoutExtension,
} from '../../engines/vllm-ways.ts'
import type { EngineAt } from '../rank/messages.ts'
import type { RankInfo } from '../types.ts'
import { EnginePause } from './engine-pause.ts'
import type { EngineRecord } from './engines.ts'
import { EngineRequest } from './request.ts'
import { type EngineSpec, requireNative, type UpdateSpec, whyNotNative } from './spec.ts'

const LOOK_MS = 5000
const LOOK_AGAIN_MS = 200
/** Until a vLLM has told how it was started. */
const WAYS_MS = 30_000
/** Of the conversation between a rank and {@link updateNatively}. */
const NATIVE_DIALECT: Dialect = 'D4'
/** Of our own worker extension. */
const DIRECT_METHOD = 'ckpt_direct'

export interface HttpResult extends UpdateVerdict {
  /** 0: there was no answer. */
  readonly status: number
}

/** How one engine fared in an update that failed. */
export interface EngineFate {
  /** It was sent at least one list. */
  readonly touched: boolean
  /** Every worker of it has the whole version. */
  readonly finished: boolean
  /** Its workers were told that they have everything: one that was stopped before it knew would have raised. */
  readonly released: boolean
  /** What it then has. */
  readonly version: string | null
  readonly dialect: Dialect | null
}

/** One engine in one update. */
export class EngineContact {
  readonly spec: EngineSpec
  readonly ranks: readonly RankInfo[]
  readonly #record: EngineRecord
  readonly #client: EngineClient
  #adapter: EngineAdapter | null = null
  /** What the last look said. */
  #words = ''
  #posted = false
  #wentNatively = false
  #result: HttpResult | null = null
  /** What told the start of the engine when the last request was posted. */
  #startThen: Promise<string | null> | null = null
  #servingTorn = false
  readonly #pausing: EnginePause
  #note: Failure | null = null

  /** @param host that of its first rank's daemon */
  constructor(
    spec: EngineSpec,
    ranks: readonly RankInfo[],
    record: EngineRecord,
    host: EngineHost,
  ) {
    this.spec = spec
    this.ranks = ranks
    this.#record = record
    this.#client = new EngineClient({ url: spec.url, uds: spec.uds }, host)
    this.#pausing = new EnginePause(record, this.#client, () => this.#knownAdapter())
  }

  get record(): EngineRecord {
    return this.#record
  }

  /** Of one that was looked at. */
  get at(): EngineAt {
    const { url, uds, node } = this.spec
    return { url, uds, kind: this.#record.kind, node }
  }

  /** That its workers speak, as far as is known. */
  get dialect(): Dialect | null {
    return this.isNative ? NATIVE_DIALECT : this.#record.dialect
  }

  /** Its weights come by vLLM's own transfer: that was asked for, or it was seen to have nothing else. */
  get isNative(): boolean {
    const { native } = this.spec
    return native === 'asked' || (native === 'may' && this.#record.native !== null)
  }

  get posted(): boolean {
    return this.#posted
  }

  get result(): HttpResult | null {
    return this.#result
  }

  /** An engine that was not looked at in this update may be known from an earlier one. */
  #knownAdapter(): EngineAdapter {
    const { kind } = this.#record
    if (this.#adapter !== null) return this.#adapter
    if (kind === null) throw new Error('the engine was not looked at')
    return adapterOf(kind)
  }

  /**
   * Waits until the engine can take an update.
   *
   * @throws CkptError `engine_unreachable`, `engine_device_missing`, `engine_restart_needed`, `engine_busy`, `engine_protocol`,
   * `not_supported`
   */
  async ready(waitMs: number, signal: AbortSignal): Promise<void> {
    const endMs = performance.now() + waitMs
    await this.#checkRestarted(signal)
    await this.#checkNative(signal)
    await this.#lastRequest(waitMs, signal)
    for (;;) {
      // one that stands still must not keep it from being told who that is
      const lookMs = waitMs === 0 ? LOOK_MS : Math.max(1, endMs - performance.now())
      if (await this.#look(signal, Math.min(LOOK_MS, lookMs))) return this.#requireExtension(signal)
      const leftMs = endMs - performance.now()
      if (leftMs <= 0) break
      await Bun.sleep(Math.min(LOOK_AGAIN_MS, leftMs))
      if (signal.aborted) throw reasonOf(signal)
    }
    const seconds = Math.round(waitMs / 100) / 10
    const message = `the engine was not ready within ${seconds} s: ${this.#words}`
    throw this.#error('engine_unreachable', message)
  }

  /** True when it is ready. Throws what waiting does not mend. */
  async #look(signal: AbortSignal, limitMs = LOOK_MS): Promise<boolean> {
    const late: Failure = {
      code: 'engine_unreachable',
      message: `${this.spec.url}: no answer within ${Math.round(limitMs / 100) / 10} s`,
    }
    const within = signalWithin(signal, limitMs, late)
    try {
      const { kind } = this.spec
      this.#adapter ??= kind === null ? await detectEngine(this.#client, within) : adapterOf(kind)
      this.#record.kind = this.#adapter.kind
      if (this.spec.native === 'asked') requireNative(this.spec.url, this.#adapter.kind)
      const seen = await this.#adapter.look(this.#client, within)
      if (seen.ready && seen.deviceUuids !== null) this.#checkDevices(seen.deviceUuids)
      this.#record.dialect = seen.dialect ?? this.#record.dialect
      this.#words = seen.words
      return seen.ready
    } catch (error) {
      if (signal.aborted) throw reasonOf(signal)
      if (!(error instanceof CkptError) || error.code !== 'engine_unreachable') {
        throw this.#named(error, 'open')
      }
      // the last look may have no time left for an answer: what an earlier one has seen tells more
      const isCut = within.aborted && limitMs < LOOK_AGAIN_MS
      if (!isCut || this.#words === '') this.#words = error.message
      return false
    }
  }

  /**
   * vLLM's later RPCs get the answers of earlier ones after a worker has raised: only a restart helps, and an answer that comes
   * early would free a ring that is still read. So every update is refused until a restart was seen: something else than before
   * tells its start, or nobody took a connection. Where it tells nothing, only the latter lifts it: an update that is sent, or
   * waits, while the engine is down.
   */
  async #checkRestarted(signal: AbortSignal): Promise<void> {
    const { restart } = this.#record
    if (restart === null) return
    const now = await this.#start(signal)
    if (signal.aborted) throw reasonOf(signal)
    if (isRestarted(restart.listener, now)) {
      this.#record.restart = null
      return
    }
    // it did not tell when it was marked: the next start will differ from what it tells now
    if (restart.listener === null) this.#record.restart = { listener: now }
    const unseen =
      now === null
        ? ' and send an update while it is down, for a restart of it cannot be seen from here'
        : ''
    const message = `${this.spec.url} failed ${this.#record.tornBy === null ? 'an update' : `update ${this.#record.tornBy}`} in an RPC that leaves its tensor-parallel ranks out of step: start it again${unseen}`
    throw this.#error('engine_restart_needed', message)
  }

  /**
   * A method that its workers do not have leaves the ranks of a larger vLLM out of step: it is asked before the first update.
   *
   * @throws CkptError `not_supported`
   */
  async #requireExtension(signal: AbortSignal): Promise<void> {
    const { kind, updated } = this.#record
    if (kind !== 'vllm' || this.spec.ranks.length < 2 || updated) return
    const without = await this.#askWithout(signal)
    if (without !== null) throw this.#error('not_supported', this.#missesExtension(without))
  }

  #missesExtension(without: WithoutExtension): string {
    return missesExtension(without, whyNotNative(this.spec))
  }

  /** One that was started again may have an extension. */
  async #checkNative(signal: AbortSignal): Promise<void> {
    const { native } = this.#record
    if (native === null || native.start === (await this.#start(signal))) return
    if (signal.aborted) throw reasonOf(signal)
    this.#record.native = null
  }

  #start(signal: AbortSignal): Promise<string | null> {
    const message = `${this.spec.url}: no answer within ${LOOK_MS / 1000} s`
    return engineStart(
      this.#client,
      signalWithin(signal, LOOK_MS, { code: 'engine_timeout', message }),
    )
  }

  async #lastRequest(waitMs: number, signal: AbortSignal): Promise<void> {
    const { request } = this.#record
    if (request === null) return
    const endMs = performance.now() + waitMs
    while (!(await request.isOver())) {
      if (signal.aborted) throw reasonOf(signal)
      const leftMs = endMs - performance.now()
      if (leftMs <= 0) {
        const message = `${this.spec.url} has not answered the request of an earlier update yet`
        throw this.#error('engine_busy', message)
      }
      await Bun.sleep(Math.min(LOOK_AGAIN_MS, leftMs))
    }
    this.#record.request = null
  }

  #checkDevices(told: readonly string[]): void {
    const theirs = new Set(told.map(bareUuid))
    const ours = new Set(this.ranks.map((rank) => bareUuid(rank.uuid)))
    const missing = [...theirs].find((uuid) => !ours.has(uuid))
    if (missing !== undefined) {
      const message = `${this.spec.url} uses device GPU-${missing}, which is not among its ranks in this update`
      throw this.#error('engine_device_missing', message)
    }
    const foreign = this.ranks.find((rank) => !theirs.has(bareUuid(rank.uuid)))
    if (foreign === undefined) return
    const message = `${this.spec.url} does not use device ${foreign.uuid} of rank ${foreign.rank}`
    throw this.#error('engine_device_missing', message, foreign.rank)
  }

  /** Says which engine an error of one of its routes is about. */
  #named(error: unknown, phase: Phase): CkptError {
    return CkptError.from({ rank: this.spec.ranks[0], phase, ...CkptError.wrap(error).failure })
  }

  #error(code: Failure['code'], message: string, rank = this.spec.ranks[0]): CkptError {
    return new CkptError(code, message, { rank, phase: 'open' })
  }

  /**
   * Stock workers look their device's uuid up; ranks that share a device within one engine can only be told apart by our own
   * key, which has the rank as its daemon numbers it, or, where several daemons have the device, its place in the engine.
   */
  map(addresses: ReadonlyMap<number, string>): Record<string, string> {
    const map: Record<string, string> = {}
    const isDistinct = new Set(this.ranks.map(({ key }) => key)).size === this.ranks.length
    for (const [place, rank] of this.ranks.entries()) {
      const sharing = this.ranks.filter((other) => other.uuid === rank.uuid).length
      const own = isDistinct ? rank.key : `${rank.uuid}#${place}`
      map[sharing === 1 ? rank.uuid : own] = addresses.get(rank.rank) ?? ''
    }
    return map
  }

  /** @throws CkptError `engine_busy` at the deadline, `not_supported`, `engine_failed`, `engine_unreachable` */
  async pause(
    mode: PauseMode,
    pauseMs: number,
    updateId: string,
    signal: AbortSignal,
  ): Promise<void> {
    const seconds = Math.round(pauseMs / 100) / 10
    const message = `${this.spec.url} was not paused (${mode}) within ${seconds} s: requests are still running`
    const late: Failure = { code: 'engine_busy', message, phase: 'pause', rank: this.spec.ranks[0] }
    const within = signalWithin(signal, pauseMs, late)
    try {
      await this.#pausing.pause(mode, updateId, within, () => this.#record.save())
    } catch (error) {
      const { failure } = CkptError.wrap(error)
      throw CkptError.from({ rank: this.spec.ranks[0], ...failure, phase: 'pause' })
    }
  }

  /** Posts the update in the background. The result never rejects; it may come long after the update has ended. */
  post(
    map: Record<string, string>,
    update: UpdateSpec,
    timeoutSeconds: number,
    closing: AbortSignal,
    direct = false,
  ): Promise<HttpResult> {
    const adapter = this.#knownAdapter()
    const { weightVersion } = update
    const method = direct ? DIRECT_METHOD : update.method
    const body = { map, method, weightVersion, timeoutSeconds }
    this.#posted = true
    this.#record.wentNatively = false
    this.#result = null
    this.#startThen =
      direct || this.spec.ranks.length < 2
        ? null
        : this.#start(new AbortController().signal).catch(() => null)
    const request = new EngineRequest(this.#client, timeoutSeconds * 1000)
    this.#record.request = request
    const signal = AbortSignal.any([closing, request.signal])
    const answer = this.isNative
      ? this.#updateNatively(body, signal)
      : this.#postUpdate(adapter, body, signal)
    return answer.then((result) => {
      request.answered()
      // one that comes late is of an attempt that is over
      if (this.#record.request === request) this.#takeResult(result)
      return result
    })
  }

  async #postUpdate(
    adapter: EngineAdapter,
    body: UpdateBody,
    signal: AbortSignal,
  ): Promise<HttpResult> {
    try {
      const { updatePath } = adapter
      const reply = await this.#client.postUpdate(updatePath, adapter.updateBody(body), signal)
      const result = { ...adapter.judge(reply), status: reply.status }
      const { method } = body
      const misses =
        adapter.kind === 'vllm' && method !== DIRECT_METHOD && missesMethod(reply, method)
      return misses ? await this.#withoutExtension(result, body, signal) : result
    } catch (error) {
      const { message } = CkptError.wrap(error)
      return { ok: false, status: 0, message, structured: false, reload: null }
    }
  }

  /** A vLLM that was started without an extension is brought the weights by its own transfer, in the same update. */
  async #withoutExtension(
    failed: HttpResult,
    body: UpdateBody,
    signal: AbortSignal,
  ): Promise<HttpResult> {
    const without = await this.#askWithout(signal)
    if (without === null) return failed
    if (this.spec.native !== 'may' || without.backend !== 'ipc') {
      return { ...failed, message: `${failed.message} ${this.#missesExtension(without)}` }
    }
    this.#record.native = { start: await this.#start(signal) }
    const { dialect } = this.#record
    if (dialect === null || dialect === NATIVE_DIALECT) return this.#updateNatively(body, signal)
    // its rank expects a worker as it had before it was started again
    const message = `${failed.message} It has no worker extension any more: its own weight transfer will bring the next update`
    return { ...failed, message }
  }

  /** Null: it has one, or does not tell. */
  #askWithout(signal: AbortSignal): Promise<WithoutExtension | null> {
    const late: Failure = { code: 'engine_timeout', message: 'it does not tell how it was started' }
    return withoutExtension(this.#client, signalWithin(signal, WAYS_MS, late)).catch(() => null)
  }

  /** Of an engine of one rank. */
  async #updateNatively(
    { map, weightVersion }: UpdateBody,
    signal: AbortSignal,
  ): Promise<HttpResult> {
    const [uuid, address] = Object.entries(map)[0] as [string, string]
    const record = this.#record
    const start = await this.#start(signal).catch(() => null)
    const ended = start !== null && record.nativeEnded === start
    const update = { client: this.#client, uuid, address, weightVersion, ended }
    record.nativeEnded = null
    this.#wentNatively = record.wentNatively = true
    const result = await updateNatively(update, signal)
    if (result.ok) record.nativeEnded = start
    // another start of it, which may have an extension, would not be seen
    if (!result.ok && record.native?.start === null) record.native = null
    return result
  }

  #takeResult(result: HttpResult): void {
    const record = this.#record
    this.#result = result
    record.request = null
    if (result.notDirect === undefined) return
    record.notDirect = result.notDirect
    record.saidBy = this.#startThen
  }

  /**
   * Whether the engine is the one that has said that it understands direct updates, as far as can be seen. Of an engine of one
   * rank it does not matter: nothing of it can fall out of step.
   */
  async isAsBefore(signal: AbortSignal): Promise<boolean> {
    const before = await this.#record.saidBy
    if (before === null || before === (await this.#start(signal))) return true
    this.#record.notDirect = undefined
    return false
  }

  /**
   * After an attempt at a direct update that was given up before the first copy.
   *
   * @param told whether any worker of it was told to hold still
   * @throws CkptError `engine_restart_needed`
   */
  async giveUpDirect(updateId: string, told: boolean, signal: AbortSignal): Promise<void> {
    if (this.#isTouched(told)) this.#markTorn(updateId, told)
    if (!(await this.#outOfStep(signal))) return
    this.#record.notDirect = undefined
    await this.#requireRestart(signal)
    const message = `${this.spec.url} does not know direct updates any more, and its answer leaves its tensor-parallel ranks out of step: start it again`
    throw this.#error('engine_restart_needed', message)
  }

  /** What an answer does not say proves nothing: with data parallelism vLLM gives only the first engine core's. */
  #isTouched(told: boolean): boolean {
    return told || this.#result?.torn === true
  }

  /** A worker that says so though nobody has told it anything has a part of an earlier update. */
  #markTorn(updateId: string, told: boolean): void {
    const { tornBy } = this.#record
    this.#record.tornBy = told || tornBy === null ? updateId : tornBy
  }

  /** After a success: caches of old results go. */
  async settle(signal: AbortSignal): Promise<void> {
    try {
      this.#note = await this.#knownAdapter().settle(this.#client, this.#pausing.mode, signal)
    } catch (error) {
      throw this.#named(error, 'post')
    }
  }

  /** Resumes the engine when it was us who paused it. */
  async resume(signal: AbortSignal): Promise<void> {
    try {
      await this.#pausing.resume(signal)
    } catch (error) {
      throw this.#named(error, 'resume')
    }
  }

  succeed(version: string | null, dialect: Dialect | null): void {
    const record = this.#record
    record.version = version
    record.updated = true
    this.#noteDialect(dialect)
    record.tornBy = null
  }

  /** What a native update speaks is ours. */
  #noteDialect(dialect: Dialect | null): void {
    if (!this.#wentNatively) this.#record.dialect = dialect ?? this.#record.dialect
  }

  /**
   * After a failure: a torn engine stops serving; one that has the whole version, or that was not touched, goes on. Never
   * throws.
   */
  async fail(updateId: string, fate: EngineFate, signal: AbortSignal): Promise<void> {
    const record = this.#record
    this.#noteDialect(fate.dialect)
    const answered = this.#result?.ok
    const whole = fate.finished ? (answered ?? true) : fate.released && answered === true
    if (whole) this.succeed(fate.version, fate.dialect)
    else if (this.#isTouched(fate.touched)) await this.#tear(updateId, fate.touched, signal)
    else if (await this.#hasRaised(signal)) await this.#requireRestart(signal)
    if (record.tornBy !== null) return this.#stop(signal)
    if (whole) await this.#settleInPassing(signal)
    // what is owed when this fails stays in the record
    await this.resume(signal).catch(() => {})
  }

  /** What is cached comes from the old weights. Not tried for long: the engine is to go on. */
  async #settleInPassing(signal: AbortSignal): Promise<void> {
    try {
      this.#note = await this.#knownAdapter().settle(this.#client, null, signal)
    } catch (error) {
      this.#note = this.#named(error, 'post').failure
    }
  }

  async #tear(updateId: string, told: boolean, signal: AbortSignal): Promise<void> {
    this.#markTorn(updateId, told)
    if (await this.#outOfStep(signal)) await this.#requireRestart(signal)
  }

  /** Its mark is of an update that nobody drives any more, or whose daemon could not reach it. Never throws. */
  async stopTorn(signal: AbortSignal): Promise<void> {
    try {
      if (this.#record.kind === null) await this.#look(signal)
      await this.#stop(signal)
    } catch {
      this.#servingTorn = true
    }
    // healed meanwhile by an update that did not know of the pause
    if (this.#record.tornBy === null) await this.resume(signal).catch(() => {})
  }

  async #requireRestart(signal: AbortSignal): Promise<void> {
    const now = await this.#start(signal)
    this.#record.restart = { listener: now === NOT_RUNNING ? null : now }
  }

  async #stop(signal: AbortSignal): Promise<void> {
    try {
      // a journal that cannot be written must not keep a torn engine serving
      const { tornBy } = this.#record
      await this.#pausing.pause('abort', tornBy, signal, () => this.#record.save().catch(() => {}))
    } catch {
      this.#servingTorn = !this.#record.paused
    }
  }

  /** Of an engine that has not been sent anything: without the method, or before they were given a ring, its workers raise too. */
  async #hasRaised(signal: AbortSignal): Promise<boolean> {
    return (this.#result?.status ?? 0) >= 500 && (await this.#outOfStep(signal))
  }

  /** Whether workers may have raised out of the call, in an engine that does not get over that; see design.md, section 7. */
  async #outOfStep(signal: AbortSignal): Promise<boolean> {
    if (this.spec.ranks.length < 2 || !this.#posted) return false
    if ((this.#result?.ok ?? false) || (this.#result?.structured ?? false)) return false
    return this.#knownAdapter().outOfStep(this.#client, signal)
  }

  report(failure: Failure | null, finished: boolean): EngineReport {
    const { url, ranks } = this.spec
    const record = this.#record
    const error = (failure === null ? null : this.#ownFailure(failure)) ?? this.#note
    return {
      url,
      dialect: record.dialect,
      ...(this.#wentNatively ? { method: 'native-ipc' } : {}),
      ranks: [...ranks],
      result: finished ? 'ok' : this.#posted ? 'failed' : 'not_contacted',
      torn: record.tornBy !== null,
      ...(this.#servingTorn ? { serving_torn: true } : {}),
      ...(record.restart !== null ? { engine_restart_needed: true } : {}),
      ...(this.#result?.reload ? { reload: this.#result.reload } : {}),
      ...(finished && record.kind === 'sglang' ? { post_hook: 'unknown' } : {}),
      ...(error === null ? {} : { error }),
    }
  }

  /** What this engine has to say about the failure of the update. */
  #ownFailure(failure: Failure): Failure | null {
    const { rank } = failure
    if (rank !== undefined && this.spec.ranks.includes(rank)) return failure
    const result = this.#result
    if (result === null || result.ok) return null
    return { code: 'engine_failed', message: result.message, rank: this.spec.ranks[0] }
  }
}

/** A socket that can be seen now would have been seen before, if its process had run then. */
function isRestarted(before: string | null, now: string | null): boolean {
  if (now === NOT_RUNNING) return true
  if (now === null) return false
  return before === null ? /^\d+$/.test(now) : now !== before
}

/** Without the prefix that some engines leave out and the rank that only our own keys have. */
function bareUuid(uuid: string): string {
  return uuid.replace(/^GPU-/, '').replace(/#\d+$/, '').toLowerCase()
}
