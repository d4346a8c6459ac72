import { CkptError } from '@ckpt/core'
import { type Library, SIGNAL_ABORT, SIGNAL_USER } from '@ckpt/cuda'
import type { Fault } from './faults.ts'
import type {
  Done,
  HeldTensor,
  RankEnvelope,
  RankReply,
  RankRequest,
  RankSettings,
  RankUpdate,
} from './messages.ts'
import type { UpdateWay } from './way.ts'

/** A Worker that does not answer within this after it was told to leave is ended. */
const CLOSE_MS = 10_000
const START_MS = 30_000
const HASH_MS = 600_000
/** What a Worker may take beyond the request's timeout to notice it. */
const SLACK_MS = 5000

/** As an update of one rank has ended, for its engine. */
export interface RankOutcome extends RankUpdate {
  /** Null: it has gone well. */
  readonly error: string | null
  readonly torn: boolean
  readonly seconds: number
}

/** The main thread's side of one rank: requests one after another, each with a deadline. */
export class RankThread {
  readonly #library: Library
  readonly #signal: number
  readonly #worker: Worker
  readonly #onExit: () => void
  #id = 0
  #settle: ((done: Done) => void) | null = null
  #current: Promise<Done> | null = null
  /** Whether this rank's parameters are of two versions. */
  torn = false
  /** Whether a fault holds it. */
  holding = false

  constructor(library: Library, onExit: () => void) {
    this.#library = library
    this.#signal = library.signalCreate()
    this.#onExit = onExit
    this.#worker = new Worker(new URL('./rank-worker.ts', import.meta.url).href)
    this.#worker.onmessage = (message: MessageEvent<RankReply>) => this.#receive(message.data)
    this.#worker.onerror = (event) => this.#settle?.({ error: `the worker died: ${event.message}` })
  }

  async start(settings: Omit<RankSettings, 'signal'>): Promise<void> {
    const whole = { ...settings, signal: this.#signal }
    const { error } = await this.#ask({ type: 'start', settings: whole }, START_MS)
    if (error !== null) throw new CkptError('device_error', error)
  }

  /** Takes one update. */
  async update(
    way: UpdateWay,
    address: string | null,
    timeoutMs: number,
    faults: readonly Fault[],
  ): Promise<RankOutcome> {
    const startMs = performance.now()
    const request = { type: 'update', way, address, timeoutMs, faults } as const
    const { error, update } = await this.#ask(request, timeoutMs + SLACK_MS)
    const { torn } = this
    const seconds = (performance.now() - startMs) / 1000
    return { ...(update ?? this.#unanswered(way)), error, torn, seconds }
  }

  /** A fault that holds the rank in this update does so no more. */
  release(): void {
    if (!this.holding) return
    this.holding = false
    this.#library.signalRaise(this.#signal, SIGNAL_USER)
  }

  /** A Worker that has died, or does not answer, does not say how far it came. */
  #unanswered(way: UpdateWay): RankUpdate {
    const changing = way === 'direct' ? 'copies' : 'lists'
    const phase = this.torn ? changing : 'begin'
    return { phase, tensors: 0, placed: false, notPlaced: 'the worker does not answer' }
  }

  async hash(): Promise<Record<string, HeldTensor>> {
    const { error, tensors } = await this.#ask({ type: 'hash' }, HASH_MS)
    if (tensors === undefined) throw new CkptError('device_error', error ?? 'no hashes')
    return tensors
  }

  /** Makes the Worker leave whatever it waits for, frees what it holds and ends it. */
  async close(): Promise<void> {
    this.#library.signalRaise(this.#signal, SIGNAL_ABORT)
    if (this.#current !== null) await Promise.race([this.#current, Bun.sleep(CLOSE_MS)])
    if (this.#current === null) await this.#ask({ type: 'close' }, CLOSE_MS)
    this.#worker.terminate()
    this.#library.signalDestroy(this.#signal)
  }

  #receive(reply: RankReply): void {
    if (reply.type === 'torn') this.torn = reply.torn
    else if (reply.type === 'holding') this.holding = true
    else if (reply.type === 'exit') this.#onExit()
    else if (reply.id === this.#id) this.#settle?.(reply)
  }

  #ask(request: RankRequest, timeoutMs: number): Promise<Done> {
    if (this.#current !== null) throw new Error('the rank is busy')
    this.#current = new Promise((resolve) => {
      this.#settle = (done) => {
        clearTimeout(timer)
        this.#settle = null
        this.#current = null
        resolve(done)
      }
      const late = `the worker did not answer within ${timeoutMs} ms`
      const timer = setTimeout(() => this.#settle?.({ error: late }), timeoutMs)
    })
    this.#worker.postMessage({ id: ++this.#id, request } satisfies RankEnvelope)
    return this.#current
  }
}
