import type { Dialect } from '../conversation-types.ts'
import { readEngineMessage } from '../pickle-reader.ts'

/** Where a fault strikes: at the handle, at the list of one bucket, at a `None`. */
export type Step = 'handle' | 'list' | 'release' | 'post'

/**
 * `error`: the worker's code raises. `hang`: it never comes back. `close`: its process dies.
 * `swallow`: SGLang's worker, whose post hook fails without anyone hearing of it.
 */
export type FaultKind = 'error' | 'hang' | 'close' | 'swallow'

export interface Script {
  readonly dialect: Dialect
  readonly fault?: { readonly kind: FaultKind; readonly step: Step; readonly bucket?: number }
  /** Milliseconds that `run` and the post hook take. */
  readonly runMs: number
  readonly postMs: number
}

/** What the worker does in answer to a message, after `afterMs` of work. */
export type WorkerAct =
  | { readonly type: 'reply'; readonly body: Uint8Array; readonly afterMs: number }
  | { readonly type: 'disconnected'; readonly afterMs: number }
  /** It has left the call that the HTTP request waits for. */
  | { readonly type: 'left'; readonly error: string | null; readonly afterMs: number }

const EMPTY = new Uint8Array(0)
/** Begins like a pickled exception of D2. */
const OPAQUE = Uint8Array.of(0x80, 0x04, 0x95, 0xff, 0x00)

/**
 * checkpoint-engine's worker of each dialect, message by message, as `engines.md` (section 1) and
 * the source of 0.4.2 describe it: what it replies, when it closes its socket, when it leaves.
 */
export class ScriptedWorker {
  #state: 'handle' | 'ack' | 'loop' | 'released' | 'left' | 'hung' = 'handle'
  #lists = 0
  #mapped = false

  constructor(readonly script: Script) {}

  get left(): boolean {
    return this.#state === 'left'
  }

  /** Whether it may still read the ring. */
  get mapsRing(): boolean {
    return this.#mapped && this.#state !== 'left'
  }

  take(body: Uint8Array): WorkerAct[] {
    const message = readEngineMessage(body)
    switch (this.#state) {
      case 'handle':
        return this.#takeHandle(message.type)
      case 'ack':
        return this.#leave('error at the handle', { closes: false })
      case 'loop':
        return this.#takeInLoop(message.type)
      case 'released':
        return message.type === 'none'
          ? this.#post()
          : this.#leave('AssertionError: released', { closes: true })
      default:
        return []
    }
  }

  #takeHandle(type: string): WorkerAct[] {
    // a hang at the handle may be one just after it was mapped
    this.#mapped ||= type === 'handle'
    const early = this.#dies('handle')
    if (early !== null) return early
    if (type === 'handle' && !this.#faults('error', 'handle')) {
      this.#state = 'loop'
      return [{ type: 'reply', body: EMPTY, afterMs: 0 }]
    }
    // D1 asserts and leaves its socket open; later ones reply and wait for one more message
    if (this.script.dialect === 'D1') return this.#leave('AssertionError', { closes: false })
    this.#state = 'ack'
    return [this.#errorReply('cannot map the ring', 0)]
  }

  #takeInLoop(type: string): WorkerAct[] {
    const { dialect, runMs } = this.script
    if (type === 'error') return this.#leave('told to stop', { closes: dialect !== 'D1' })
    if (type === 'none') return dialect === 'D4' ? this.#release() : this.#post()
    const bucket = this.#lists++
    const early = this.#dies('list', bucket)
    if (early !== null) return early
    if (!this.#faults('error', 'list', bucket)) {
      return [{ type: 'reply', body: EMPTY, afterMs: runMs }]
    }
    if (dialect === 'D1') return this.#leave('load_weights failed', { closes: false })
    return [this.#errorReply('load_weights failed', runMs)]
  }

  #release(): WorkerAct[] {
    const early = this.#dies('release')
    if (early !== null) return early
    if (this.#faults('error', 'release')) return this.#leave('release failed', { closes: true })
    // worker.py drops its buffer before it replies to the first None: a post hook reads no ring
    this.#mapped = false
    this.#state = 'released'
    return [{ type: 'reply', body: EMPTY, afterMs: 0 }]
  }

  #post(): WorkerAct[] {
    const { dialect, postMs } = this.script
    const early = this.#dies('post') ?? (dialect === 'D4' ? null : this.#dies('release'))
    if (early !== null) return early
    if (this.#faults('error', 'post') || (dialect !== 'D4' && this.#faults('error', 'release'))) {
      return this.#leave('post_hook failed', { closes: dialect !== 'D1', afterMs: postMs })
    }
    this.#state = 'left'
    return [
      { type: 'reply', body: EMPTY, afterMs: postMs },
      { type: 'disconnected', afterMs: postMs },
      { type: 'left', error: null, afterMs: postMs },
    ]
  }

  #leave(error: string, how: { closes: boolean; afterMs?: number }): WorkerAct[] {
    const afterMs = how.afterMs ?? 0
    this.#state = 'left'
    const left: WorkerAct = { type: 'left', error, afterMs }
    return how.closes ? [{ type: 'disconnected', afterMs }, left] : [left]
  }

  #errorReply(words: string, afterMs: number): WorkerAct {
    const body =
      this.script.dialect === 'D2'
        ? OPAQUE
        : new TextEncoder().encode(`Traceback (most recent call last):\nRuntimeError: ${words}\n`)
    return { type: 'reply', body, afterMs }
  }

  #faults(kind: FaultKind, step: Step, bucket?: number): boolean {
    const { fault } = this.script
    return fault?.kind === kind && fault.step === step && fault.bucket === bucket
  }

  #dies(step: Step, bucket?: number): WorkerAct[] | null {
    if (this.#faults('hang', step, bucket)) {
      this.#state = 'hung'
      return []
    }
    if (!this.#faults('close', step, bucket)) return null
    return this.#leave('the process died', { closes: true })
  }
}
