import type { Failure } from '../api/errors.ts'
import { assert } from '../checkpoint/assert.ts'
import type {
  ConversationAction,
  ConversationEvent,
  ConversationOptions,
  ConversationPhase,
  Dialect,
} from './conversation-types.ts'
import {
  describeHttp,
  describeOwed,
  describeStay,
  describeWait,
  type HttpResult,
  type Owed,
  seconds,
} from './conversation-words.ts'
import { endsReading } from './http-answer.ts'
import { pickleNone, pickleRuntimeError } from './pickle-writer.ts'
import { describeReply } from './reply-text.ts'

/** What checkpoint-engine's own server tells its workers: engines' logs are searched for it. */
export const ABORT_TEXT = 'Some workers failed to update weights'

/**
 * After a disconnect or an early answer: how long what explains it (HTTP result, last reply) may
 * still take.
 */
const GRACE_MS = 2000
/**
 * Without an HTTP request: how long a worker that has closed its socket may take to drop its
 * mapping of the ring.
 */
const UNMAP_MS = 1000
/**
 * After a success of the HTTP request: how long the last reply, which was sent before it, may take
 * to be seen.
 */
const LAST_REPLY_GRACE_MS = 250

/**
 * The daemon's side of one conversation with one engine worker, in all four dialects, without I/O:
 * events in, actions out.
 *
 * ```ts
 * const conversation = new Conversation({ handle: pickleHandle(ring), rank: 0, limits, http: true
 * }) for (const action of conversation.step({ type: 'start', nowMs: 0 })) perform(action)
 * ```
 *
 * 1. handle, its reply; 2. tensor lists, one reply each; 3. `None`, and on its reply at once a
 * second `None`, which a worker of D1 to D3 never reads because it has left; 4. what comes first
 * tells the dialect: a reply (D4), a disconnect or the HTTP result. On a failure the worker is told
 * to raise, and the conversation stays until the HTTP request has returned and the worker owes no
 * reply any more: an engine answers for the first of its workers that fails, a proxy for none.
 *
 * Promises: `failed`, `finished`, `ring_free` and `close` come at most once and never both of the
 * first two; nothing is acked after `failed`; between lists there is always a reply; with ticks at
 * `deadlineMs` it always ends in `close`.
 */
export class Conversation {
  readonly #options: ConversationOptions
  #phase: ConversationPhase = 'open'
  #dialect: Dialect | null
  #out: ConversationAction[] = []
  #started = false
  #openUntilMs = 0
  #totalUntilMs = 0
  /** Set with a failure. */
  #leaveUntilMs = 0

  #connected = false
  #everConnected = false
  /** Whether the present worker has replied to the handle. */
  #mapped = false
  /** Whether any worker has been given the handle. */
  #exported = false
  #owed: Owed | null = null
  #waiting: { readonly bucket: number; readonly list: Uint8Array } | null = null
  #endRequested = false
  #http: HttpResult | null = null
  /** It has closed its connection without a reply to the second None. */
  #leftUnanswered = false
  #failed = false
  #ringFree = false
  /** A failure that becomes final at `atMs` unless something explains it better. */
  #suspicion: { readonly atMs: number; readonly failure: Failure } | null = null
  /** The moment at which an end that nothing contradicts is taken for a good one. */
  #settleAtMs: number | null = null

  constructor(options: ConversationOptions) {
    this.#options = options
    this.#dialect = options.dialect ?? null
  }

  get phase(): ConversationPhase {
    return this.#phase
  }

  /** What is known of the worker's dialect; null: nothing yet. */
  get dialect(): Dialect | null {
    return this.#dialect
  }

  /**
   * Whether a worker has ever connected: if none has while others have, its device is not in the
   * engine.
   */
  get everConnected(): boolean {
    return this.#everConnected
  }

  /**
   * Whether the worker that is connected now still owes the reply to something that it reads the ring
   * for: until it replies or disconnects, an answer of the engine says nothing about it.
   */
  get worker(): { readonly connected: boolean; readonly owes: boolean } {
    return { connected: this.#connected, owes: this.#owesReading() }
  }

  /** Whether the worker has taken everything and has left, though its engine's request may not have returned. */
  get hasLeft(): boolean {
    if (this.#failed) return false
    return this.#phase === 'leaving' || (this.#phase === 'post' && !this.#connected)
  }

  /** The next moment at which a `tick` is wanted; null when closed or not started. */
  get deadlineMs(): number | null {
    if (!this.#started || this.#phase === 'closed') return null
    let soonest = this.#limitMs()
    if (this.#suspicion !== null) soonest = Math.min(soonest, this.#suspicion.atMs)
    if (this.#settleAtMs !== null) soonest = Math.min(soonest, this.#settleAtMs)
    return soonest
  }

  step(event: ConversationEvent): ConversationAction[] {
    if (this.#phase === 'closed') return []
    assert(this.#started === (event.type !== 'start'), 'start is the first event and comes once')
    this.#out = []
    this.#dispatch(event)
    this.#expire(event.nowMs)
    return this.#out
  }

  #dispatch(event: ConversationEvent): void {
    switch (event.type) {
      case 'start':
        return this.#onStart(event.nowMs)
      case 'connected':
        return this.#onConnected(event.nowMs)
      case 'disconnected':
        return this.#onDisconnected(event.nowMs)
      case 'reply':
        return this.#onReply(event.body, event.nowMs)
      case 'announce':
        return this.#onAnnounce(event.bucket, event.list, event.nowMs)
      case 'end':
        this.#endRequested = true
        return this.#advance(event.nowMs)
      case 'http':
        return this.#onHttp(event, event.nowMs)
      case 'abort':
        return this.#fail(event.failure, event.nowMs)
      case 'tick':
    }
  }

  #onStart(nowMs: number): void {
    this.#started = true
    this.#openUntilMs = nowMs + this.#options.limits.openMs
    this.#totalUntilMs = nowMs + this.#options.limits.totalMs
  }

  #onConnected(nowMs: number): void {
    if (this.#connected) return
    this.#connected = true
    this.#everConnected = true
    this.#mapped = false
    if (this.#failed) {
      // it was given nothing yet
      this.#owed = null
      this.#sendAbort()
    } else if (this.#phase === 'open') {
      // a worker that closed before it replied, and one that takes its place
      this.#suspicion = null
      this.#exported = true
      this.#owed = { to: 'handle' }
      this.#send(this.#options.handle)
    } else if (this.#phase === 'post' || this.#phase === 'leaving') {
      // SGLang opens the address once more for a draft model
      const message =
        'a worker connected again after it had taken all weights; ' +
        'a second model at the same address is not supported'
      this.#fail(this.#failure('not_supported', message), nowMs)
    }
  }

  #onDisconnected(nowMs: number): void {
    if (!this.#connected) return
    this.#connected = false
    if (this.#failed) {
      this.#countLeaving(nowMs)
      return this.#leave(nowMs)
    }
    if (this.#phase === 'leaving') return
    if (this.#phase === 'post') return this.#onLeftAfterLastSend(nowMs)
    const doing = this.#owed === null ? 'between two buckets' : describeOwed(this.#owed)
    const failure = this.#failure(
      'engine_disconnected',
      `the engine's worker closed its connection ${doing}`,
    )
    if (!this.#options.http) return this.#fail(failure, nowMs)
    this.#suspicion = { atMs: nowMs + GRACE_MS, failure }
  }

  /** D1 to D3 have left in good order, or D4's post hook failed: only the HTTP result can tell. */
  #onLeftAfterLastSend(nowMs: number): void {
    this.#leftUnanswered = true
    if (this.#options.http) {
      if (this.#http !== null) this.#finish()
    } else if (this.#options.dialect === 'D4') {
      const message = "the engine's worker closed its connection without a reply to the second None"
      this.#fail(this.#failure('engine_disconnected', message), nowMs)
    } else {
      // nothing tells when such a worker drops its mapping; it closes its socket just before
      this.#settleAtMs = nowMs + UNMAP_MS
    }
  }

  #onReply(body: Uint8Array, nowMs: number): void {
    this.#everConnected = true
    const owed = this.#owed
    this.#owed = null
    if (this.#failed) {
      this.#countLeaving(nowMs)
      return this.#leave(nowMs)
    }
    if (owed === null) {
      if (this.#phase === 'leaving') return
      const message = "the engine's worker sent a reply that nothing asked for"
      return this.#fail(this.#failure('engine_protocol', message), nowMs)
    }
    if (body.length > 0) return this.#onErrorReply(owed, body, nowMs)
    switch (owed.to) {
      case 'handle':
        this.#mapped = true
        this.#phase = 'transfer'
        this.#out.push({ type: 'opened' })
        return this.#advance(nowMs)
      case 'list':
        this.#out.push({ type: 'acked', bucket: owed.bucket })
        return this.#advance(nowMs)
      case 'first None':
        return this.#onReleased(nowMs)
      case 'second None':
        return this.#onPostDone()
    }
  }

  #onErrorReply(owed: Owed, body: Uint8Array, nowMs: number): void {
    const { words, text } = describeReply(body)
    if (!text) this.#dialect = 'D2'
    else if (this.#dialect !== 'D4') this.#dialect = 'D3'
    const message = `the engine's worker failed ${describeOwed(owed)}: ${words}`
    this.#fail(this.#failure('engine_failed', message), nowMs)
  }

  #onReleased(nowMs: number): void {
    // an early answer or a disconnect that came before the reply it followed
    this.#suspicion = null
    this.#phase = 'post'
    const unmapped = this.#options.dialect === 'D4'
    if (!this.#connected) {
      if (unmapped) this.#freeRing()
      return this.#onLeftAfterLastSend(nowMs)
    }
    this.#owed = { to: 'second None' }
    this.#send(pickleNone())
    // which takes its time: the worker's post hook runs meanwhile
    if (unmapped) this.#freeRing()
    if (this.#http !== null) this.#settleAtMs = nowMs + LAST_REPLY_GRACE_MS
  }

  #onPostDone(): void {
    this.#dialect = 'D4'
    this.#freeRing()
    if (this.#http !== null || !this.#options.http) return this.#finish()
    this.#phase = 'leaving'
  }

  #onAnnounce(bucket: number, list: Uint8Array, nowMs: number): void {
    assert(Number.isSafeInteger(bucket) && bucket >= 0, `bucket ${bucket} is an index`)
    if (this.#failed) return
    assert(this.#waiting === null, 'one list at most waits to be sent')
    assert(!this.#endRequested, 'no list after the end')
    this.#waiting = { bucket, list }
    this.#advance(nowMs)
  }

  /** Sends what may be sent now: the next list, or the first `None`. */
  #advance(nowMs: number): void {
    if (this.#phase !== 'transfer' || this.#owed !== null) return
    if (!this.#connected || !this.#mapped) return
    if (this.#waiting !== null) {
      const { bucket, list } = this.#waiting
      this.#waiting = null
      this.#owed = { to: 'list', bucket, sinceMs: nowMs }
      this.#send(list)
    } else if (this.#endRequested) {
      this.#phase = 'release'
      this.#owed = { to: 'first None' }
      this.#send(pickleNone())
    }
  }

  #onHttp(result: HttpResult, nowMs: number): void {
    assert(this.#options.http && this.#http === null, 'one HTTP request returns once')
    this.#http = result
    if (this.#failed) return this.#leave(nowMs)
    if (!result.ok) return this.#fail(this.#httpFailure(result), nowMs)
    switch (this.#phase) {
      case 'open':
      case 'transfer': {
        const done = this.#everConnected ? 'had taken all weights' : 'had connected'
        const message = `the engine answered ${result.status} before its worker ${done}`
        return this.#fail(this.#failure('engine_protocol', message), nowMs)
      }
      case 'release': {
        // the reply, sent before, may be on its way
        const failure = this.#failure(
          'engine_protocol',
          `the engine answered ${result.status} without its worker's reply to the first None`,
        )
        this.#suspicion = { atMs: nowMs + GRACE_MS, failure }
        return
      }
      case 'post':
        // which dialect it was is known already, or is told by a reply that may be on its way
        if (!this.#connected || this.#dialect !== null) return this.#finish()
        this.#settleAtMs = nowMs + LAST_REPLY_GRACE_MS
        return
      default:
        return this.#finish()
    }
  }

  #httpFailure(result: HttpResult): Failure {
    const code = result.status === 0 ? 'engine_unreachable' : 'engine_failed'
    return this.#failure(code, describeHttp(result, this.#everConnected))
  }

  #fail(failure: Failure, nowMs: number): void {
    if (this.#failed) return
    this.#failed = true
    this.#suspicion = null
    this.#settleAtMs = null
    // a worker that has the second None reads nothing after it; one that connected again has not
    const reads = (this.#phase !== 'post' && this.#phase !== 'leaving') || !this.#mapped
    if (this.#connected && reads) this.#sendAbort()
    this.#phase = 'leaving'
    const { leaveMs, replyMs } = this.#options.limits
    const replyUntilMs = this.#owed?.to === 'list' ? this.#owed.sinceMs + replyMs : nowMs
    const runUntilMs = Math.max(nowMs, Math.min(replyUntilMs, this.#totalUntilMs))
    this.#leaveUntilMs = runUntilMs + leaveMs
    this.#out.push({ type: 'failed', failure })
    this.#leave(nowMs)
  }

  /** It is no longer inside `run`: from now on it has `leaveMs`. */
  #countLeaving(nowMs: number): void {
    this.#leaveUntilMs = Math.min(this.#leaveUntilMs, nowMs + this.#options.limits.leaveMs)
  }

  /**
   * After a failure: closes when the engine can no longer be reading the ring and no worker waits
   * for a word.
   */
  #leave(nowMs: number): void {
    if (!this.#exported) this.#freeRing()
    if (this.#http !== null) {
      if (this.#owesReading() && !endsReading(this.#http, this.#dialect)) return
      this.#freeRing()
      this.#close()
    } else if (!this.#options.http && this.#exported && !this.#connected) {
      // the worker drops its mapping just after it has closed its socket
      this.#settleAtMs ??= nowMs + UNMAP_MS
    }
  }

  #owesReading(): boolean {
    return this.#connected && this.#owed !== null && this.#owed.to !== 'second None'
  }

  #finish(): void {
    this.#freeRing()
    if (this.#dialect === null || (this.#dialect === 'D4' && this.#leftUnanswered)) {
      this.#dialect = 'D3'
    }
    this.#out.push({ type: 'finished', dialect: this.#dialect })
    this.#close()
  }

  #close(reason?: string): void {
    this.#phase = 'closed'
    const ringFree = this.#ringFree
    this.#out.push(
      reason === undefined ? { type: 'close', ringFree } : { type: 'close', ringFree, reason },
    )
  }

  #freeRing(): void {
    if (this.#ringFree) return
    this.#ringFree = true
    this.#out.push({ type: 'ring_free' })
  }

  #send(body: Uint8Array): void {
    this.#out.push({ type: 'send', body })
  }

  /**
   * The exception that makes a worker raise. One that has not mapped the ring yet replies to the
   * first (a wrong handle) or has replied an error, and then waits for one more message of any
   * kind.
   */
  #sendAbort(): void {
    const body = pickleRuntimeError(ABORT_TEXT)
    this.#send(body)
    if (!this.#mapped) this.#send(body)
  }

  /** Takes the consequences of the time. */
  #expire(nowMs: number): void {
    if (this.#phase === 'closed') return
    if (this.#settleAtMs !== null && nowMs >= this.#settleAtMs) {
      if (!this.#failed) return this.#finish()
      this.#freeRing()
      return this.#close()
    }
    const suspicion = this.#suspicion
    if (nowMs < this.#limitMs() && (suspicion === null || nowMs < suspicion.atMs)) return
    if (!this.#failed) return this.#fail(suspicion?.failure ?? this.#limitFailure(), nowMs)
    this.#close(describeStay(this.#options, this.#exported, this.#http !== null))
  }

  /** The deadline that holds now. */
  #limitMs(): number {
    if (this.#failed) return this.#leaveUntilMs
    if (this.#phase === 'open') return Math.min(this.#openUntilMs, this.#totalUntilMs)
    if (this.#owed?.to !== 'list') return this.#totalUntilMs
    return Math.min(this.#owed.sinceMs + this.#options.limits.replyMs, this.#totalUntilMs)
  }

  /** What to say when the deadline passes. */
  #limitFailure(): Failure {
    const { openMs, replyMs } = this.#options.limits
    const waited = describeWait(this.#phase, this.#owed, this.#connected)
    if (this.#limitMs() === this.#totalUntilMs) {
      // the driver's limit is what the steps before have left of the user's timeout
      const message = `the update's timeout has passed: ${waited}`
      return this.#failure('update_timeout', message)
    }
    const limitMs = this.#phase === 'open' ? openMs : replyMs
    return this.#failure('engine_timeout', `${waited} within ${seconds(limitMs)}`)
  }

  #failure(code: Failure['code'], message: string): Failure {
    const phase = this.#phase
    return {
      code,
      message,
      rank: this.#options.rank,
      phase: phase === 'leaving' || phase === 'closed' ? 'post' : phase,
    }
  }
}
