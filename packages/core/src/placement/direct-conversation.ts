import type { Failure, Phase } from '../api/errors.ts'
import { assert } from '../checkpoint/assert.ts'
import type {
  DirectAction,
  DirectEvent,
  DirectOptions,
  DirectPhase,
} from './direct-conversation-types.ts'
import {
  packBegin,
  packEnd,
  packLeave,
  packLook,
  readGrant,
  readLookAnswer,
} from './direct-messages.ts'

type HttpEvent = Extract<DirectEvent, { type: 'http' }>

/** After a disconnect: how long the engine's answer, which says more, may still take. */
const GRACE_MS = 2000
/** After the engine's answer: how long the last reply, which was sent before it, may take to be seen. */
const LAST_REPLY_GRACE_MS = 250
const NO_ANSWER = 'the reply of the worker is none of ckpt_worker'
const LOST = "the engine's worker closed its connection in the middle of a direct update"

const WAITS_FOR: Partial<Record<DirectPhase, string>> = {
  open: 'the engine to say where its weights lie',
  beginning: 'the engine to hold still',
  ending: "the engine's processing after the copies",
  post: "the engine's request to return",
}

/**
 * The daemon's side of a direct update with one engine worker (reload.md, section 4; the worker's side is
 * `ckpt_worker/direct.py`), without I/O: events in, actions out.
 *
 * 1. `look`, its answer; 2. `begin`, its answer: the worker holds still; 3. the copies, which are not part of it; 4. `end`,
 * its answer after the engine's processing; 5. the engine's request returns. What the worker or its engine refuses before
 * `begin` is granted fails nothing: `refused`. A failure after it leaves the engine torn unless nothing was `copying` yet.
 *
 * Promises: of `finished` and `failed` at most one comes, and once; `begun` only after `looked`; with ticks at `deadlineMs` it
 * always ends in one `close`.
 */
export class DirectConversation {
  readonly #options: DirectOptions
  #phase: DirectPhase = 'open'
  #out: DirectAction[] = []
  #started = false
  #generation = ''
  #openUntilMs = 0
  #endMs = 0
  #leaveUntilMs = 0
  #connected = false
  #everConnected = false
  /** Bytes of the engine's memory may have been written. */
  #touched = false
  /** The worker was told to hold still, and has not refused. */
  #held = false
  /** It was told to leave, and is to say whether it is whole. */
  #asksWhether = false
  /** A message of ours, but for `leave`, has no reply yet. */
  #owes = false
  #http: { readonly ok: boolean; readonly words: string } | null = null
  /** What has failed unless something explains it by then. */
  #suspicion: { readonly atMs: number; readonly words: string } | null = null

  constructor(options: DirectOptions) {
    this.#options = options
  }

  get phase(): DirectPhase {
    return this.#phase
  }

  /** The phase of an update that this is. */
  get updatePhase(): Phase {
    if (this.#phase === 'ending' || this.#phase === 'post') return 'release'
    const opening: readonly DirectPhase[] = ['open', 'looked', 'beginning', 'begun']
    return opening.includes(this.#phase) ? 'open' : 'transfer'
  }

  get everConnected(): boolean {
    return this.#everConnected
  }

  /** See `Conversation.worker`: nothing of ours is read by it, so only whether it still waits for a word matters. */
  get worker(): { readonly connected: boolean; readonly owes: boolean } {
    return { connected: this.#connected, owes: this.#owes }
  }

  /** Whether the worker has taken everything, though its engine's request may not have returned. */
  get hasLeft(): boolean {
    return this.#phase === 'post'
  }

  /** The next moment at which a `tick` is wanted; null when closed or not started. */
  get deadlineMs(): number | null {
    if (!this.#started || this.#phase === 'closed') return null
    const limitMs = this.#limitMs()
    return this.#suspicion === null ? limitMs : Math.min(limitMs, this.#suspicion.atMs)
  }

  step(event: DirectEvent): DirectAction[] {
    if (this.#phase === 'closed') return []
    assert(this.#started === (event.type !== 'start'), 'start is the first event and comes once')
    this.#out = []
    this.#dispatch(event)
    this.#expire(event.nowMs)
    return this.#out
  }

  #dispatch(event: DirectEvent): void {
    const { nowMs } = event
    switch (event.type) {
      case 'start':
        return this.#onStart(nowMs)
      case 'connected':
        return this.#onConnected(nowMs)
      case 'disconnected':
        return this.#onDisconnected(nowMs)
      case 'reply':
        return this.#onReply(event.body, nowMs)
      case 'http':
        return this.#onHttp(event, nowMs)
      case 'begin':
        this.#held ||= this.#phase === 'looked'
        return this.#command('looked', 'beginning', packBegin(this.#generation))
      case 'copying':
        this.#command('begun', 'copying', null)
        this.#touched ||= this.#phase === 'copying'
        return
      case 'end':
        return this.#command('copying', 'ending', packEnd())
      case 'leave':
        return this.#onLeave(event.reason, nowMs)
      case 'abort':
        return this.#onAbort(event.failure, nowMs)
      case 'tick':
    }
  }

  #onStart(nowMs: number): void {
    const { openMs, endMs } = this.#options.limits
    this.#started = true
    this.#openUntilMs = nowMs + openMs
    this.#endMs = endMs
  }

  /** What a failure has overtaken is not done any more. */
  #command(from: DirectPhase, to: DirectPhase, body: Uint8Array | null): void {
    const over: readonly DirectPhase[] = ['withdrawn', 'failed']
    if (over.includes(this.#phase)) return
    assert(this.#phase === from, `${to} comes after ${from}, not in ${this.#phase}`)
    this.#phase = to
    if (body !== null) this.#ask(body)
  }

  #ask(body: Uint8Array): void {
    this.#owes = true
    this.#out.push({ type: 'send', body })
  }

  #onConnected(nowMs: number): void {
    if (this.#connected) return
    this.#connected = true
    this.#everConnected = true
    if (this.#phase === 'failed' || this.#phase === 'withdrawn') {
      return this.#sendLeave('the update has ended')
    }
    if (this.#phase === 'open') {
      // one that closed before it replied, and one that takes its place
      this.#suspicion = null
      return this.#ask(packLook(this.#options.knownMap))
    }
    const message = 'a worker connected again in the middle of a direct update'
    this.#fail(this.#failure('engine_protocol', message), nowMs)
  }

  #onDisconnected(nowMs: number): void {
    if (!this.#connected) return
    this.#connected = false
    this.#owes = false
    if (this.#phase === 'post') return this.#mayFinish()
    this.#asksWhether = false
    if (this.#phase === 'failed' || this.#phase === 'withdrawn') return this.#mayClose()
    // an engine that has answered already does not say more
    const graceMs = this.#options.http && this.#http === null ? GRACE_MS : 0
    this.#suspicion ??= { atMs: nowMs + graceMs, words: LOST }
  }

  #onReply(body: Uint8Array, nowMs: number): void {
    if (this.#phase === 'failed' || this.#phase === 'withdrawn') return this.#onLeft(body)
    if (!this.#owes) {
      return this.#fail(this.#failure('engine_protocol', 'the worker replies unasked'), nowMs)
    }
    this.#owes = false
    if (this.#phase === 'open') this.#onLooked(body, nowMs)
    else this.#onGrant(body, nowMs)
  }

  /** A reply that was on its way, or, after `begin`, the one to `leave`. */
  #onLeft(body: Uint8Array): void {
    if (this.#owes) {
      this.#owes = false
      return
    }
    if (!this.#asksWhether) return
    this.#asksWhether = false
    if (readGrant(body)?.refused === null) this.#out.push({ type: 'whole' })
    this.#mayClose()
  }

  #onLooked(body: Uint8Array, nowMs: number): void {
    const answer = readLookAnswer(body)
    // perhaps of a later version of it
    if (answer === null) return this.#refuse(NO_ANSWER, true, nowMs)
    if ('refused' in answer) return this.#refuse(answer.refused, true, nowMs)
    this.#generation = answer.generation
    this.#phase = 'looked'
    this.#out.push({ type: 'looked', answer })
  }

  #onGrant(body: Uint8Array, nowMs: number): void {
    const answer = readGrant(body)
    if (answer === null) return this.#fail(this.#failure('engine_protocol', NO_ANSWER), nowMs)
    const { refused, torn } = answer
    if (this.#phase === 'beginning') {
      if (refused !== null) {
        this.#held = torn
        return this.#refuse(refused, !torn, nowMs)
      }
      this.#phase = 'begun'
      this.#out.push({ type: 'begun' })
      return
    }
    if (refused !== null) return this.#fail(this.#failure('engine_failed', refused), nowMs)
    this.#phase = 'post'
    this.#suspicion = null
    this.#mayFinish()
  }

  #onHttp({ ok, status, message }: HttpEvent, nowMs: number): void {
    if (!this.#options.http || this.#http !== null) return
    const words = ok ? 'success' : message
    this.#http = { ok, words }
    this.#suspicion = null
    switch (this.#phase) {
      case 'open':
      case 'looked':
      case 'beginning':
        // its worker has left without having begun
        return this.#refuse(
          status === 0 ? `the engine did not answer: ${words}` : `the engine answered ${words}`,
          false,
          nowMs,
        )
      case 'begun':
      case 'copying':
      case 'ending': {
        const text = `the engine answered before the update had ended: ${words}`
        if (ok && this.#phase === 'ending') {
          this.#suspicion = { atMs: nowMs + LAST_REPLY_GRACE_MS, words: text }
          return
        }
        return this.#fail(this.#failure('engine_failed', ok ? text : message), nowMs)
      }
      case 'post':
        return this.#mayFinish(nowMs)
      default:
        this.#leaveUntilMs = Math.min(this.#leaveUntilMs, nowMs + LAST_REPLY_GRACE_MS)
        return this.#mayClose()
    }
  }

  /** Before it is granted to copy: nothing was changed. */
  #refuse(reason: string, said: boolean, nowMs: number): void {
    this.#phase = 'withdrawn'
    this.#leaveUntilMs = nowMs + this.#options.limits.leaveMs
    this.#out.push({ type: 'refused', reason, said })
    this.#mayClose()
  }

  #onLeave(reason: string, nowMs: number): void {
    assert(this.#phase !== 'copying', 'what is being copied cannot be left')
    if (this.#phase === 'failed' || this.#phase === 'post') return
    this.#phase = 'withdrawn'
    this.#suspicion = null
    this.#leaveUntilMs = nowMs + this.#options.limits.leaveMs
    this.#sendLeave(reason)
    this.#mayClose()
  }

  /** A worker that has all serves the new weights, whatever has failed elsewhere: its engine's answer is waited for. */
  #onAbort(failure: Failure, nowMs: number): void {
    if (this.#phase !== 'post') return this.#fail(failure, nowMs)
    this.#endMs = Math.min(this.#endMs, nowMs + this.#options.limits.leaveMs)
  }

  #sendLeave(reason: string): void {
    if (!this.#connected) return
    this.#asksWhether = this.#held && !this.#touched
    this.#out.push({ type: 'send', body: packLeave(reason, !this.#touched) })
  }

  #mayFinish(nowMs?: number): void {
    const { http } = this.#options
    if (http && this.#http === null) return
    if (this.#http !== null && !this.#http.ok && nowMs !== undefined) {
      // another worker of it has failed
      return this.#fail(this.#failure('engine_failed', this.#http.words), nowMs)
    }
    this.#out.push({ type: 'finished' })
    this.#close()
  }

  /** The engine's request tells that all its workers have left; where there is none, the connection does. */
  #mayClose(): void {
    const left = this.#options.http ? this.#http !== null : !this.#connected
    if (left && !this.#asksWhether) this.#close()
  }

  #close(): void {
    this.#phase = 'closed'
    this.#out.push({ type: 'close' })
  }

  #failure(code: Failure['code'], message: string): Failure {
    return { code, message, rank: this.#options.rank, phase: this.updatePhase }
  }

  #fail(failure: Failure, nowMs: number): void {
    if (this.#phase === 'failed' || this.#phase === 'closed') return
    const told = this.#phase === 'post'
    this.#phase = 'failed'
    this.#suspicion = null
    this.#leaveUntilMs = nowMs + this.#options.limits.leaveMs
    this.#out.push({ type: 'failed', failure })
    if (!told) this.#sendLeave(failure.message)
    this.#mayClose()
  }

  #limitMs(): number {
    if (this.#phase === 'withdrawn' || this.#phase === 'failed') return this.#leaveUntilMs
    if (this.#phase === 'open') return Math.min(this.#openUntilMs, this.#endMs)
    return this.#endMs
  }

  #expire(nowMs: number): void {
    if (this.#phase === 'closed') return
    if (this.#suspicion !== null && nowMs >= this.#suspicion.atMs) {
      this.#lose(this.#suspicion.words, nowMs)
    }
    if (this.phase === 'closed' || nowMs < this.#limitMs()) return
    if (this.#phase === 'withdrawn' || this.#phase === 'failed') return this.#close()
    const waited = `timed out waiting for ${WAITS_FOR[this.#phase] ?? 'the copies'}`
    const isOver = nowMs >= this.#endMs
    const words = isOver ? `the update's timeout has passed: ${waited}` : waited
    // then the slowest rank is to say what the update has waited for
    this.#fail(this.#failure(isOver ? 'update_timeout' : 'engine_timeout', words), nowMs)
  }

  /** Where another worker of its engine still waits, the engine's answer does not come to explain it. */
  #lose(words: string, nowMs: number): void {
    this.#suspicion = null
    const began = this.updatePhase !== 'open' || this.#phase === 'begun'
    if (!began) return this.#refuse(words, false, nowMs)
    const code = words === LOST ? 'engine_disconnected' : 'engine_failed'
    this.#fail(this.#failure(code, words), nowMs)
  }
}
