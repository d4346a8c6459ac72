import { assert } from '../../checkpoint/assert.ts'
import { Conversation } from '../conversation.ts'
import type {
  ConversationAction,
  ConversationEvent,
  ConversationLimits,
  Dialect,
} from '../conversation-types.ts'
import { pickleHandle } from '../pickle-writer.ts'
import { type Script, ScriptedWorker, type WorkerAct } from './scripted-worker.ts'

export const LIMITS: ConversationLimits = {
  openMs: 5000,
  replyMs: 2000,
  totalMs: 20_000,
  leaveMs: 3000,
}

export const HANDLE = pickleHandle({
  handle: new Uint8Array(64),
  bytes: 2 ** 21,
  refcounter: '/ckpt-1-1-a',
})

/** One conversation with one scripted worker. */
export interface Play {
  readonly script: Script
  readonly buckets: number
  readonly limits?: Partial<ConversationLimits>
  readonly http?: boolean
  readonly remembered?: Dialect
  /** When the worker connects; null: never. */
  readonly connectMs?: number | null
  /** An answer of the engine that does not come from the worker. */
  readonly answer?: { readonly atMs: number; readonly status: number; readonly message: string }
  readonly abortMs?: number
  /** Milliseconds by which the event with this number is late. */
  readonly delayMs?: (event: number) => number
  /** Extra ticks. */
  readonly ticksMs?: readonly number[]
}

export interface Performance {
  /** Every action with its time. */
  readonly actions: readonly (ConversationAction & { readonly atMs: number })[]
  readonly worker: ScriptedWorker
  readonly conversation: Conversation
  /** The ring was declared free while the worker could still read it. */
  readonly freedTooEarly: boolean
  /** How many events there were. */
  readonly events: number
}

type Timed = ConversationEvent & { readonly order: number }
type Unstamped = ConversationEvent extends infer E
  ? E extends ConversationEvent
    ? Omit<E, 'nowMs'>
    : never
  : never

const EVENTS_MAX = 10_000
/** Between the end of a worker's call and the answer to the HTTP request. */
const HTTP_MS = 5

/** Plays one conversation in simulated time until it is closed and no event is left. */
export function perform(play: Play): Performance {
  return new Stage(play).run()
}

class Stage {
  readonly #play: Play
  readonly #worker: ScriptedWorker
  readonly #conversation: Conversation
  readonly #queue: Timed[] = []
  readonly #actions: (ConversationAction & { readonly atMs: number })[] = []
  #order = 0
  #nowMs = 0
  #linked = false
  #answered = false
  /** The worker works on one message at a time. */
  #workerFreeMs = 0
  #ringReadUntilMs = 0
  #announced = 0
  #freedTooEarly = false

  constructor(play: Play) {
    this.#play = play
    this.#worker = new ScriptedWorker(play.script)
    this.#conversation = new Conversation({
      handle: HANDLE,
      rank: 3,
      limits: { ...LIMITS, ...play.limits },
      http: play.http ?? true,
      dialect: play.remembered,
    })
  }

  run(): Performance {
    const { connectMs = 10, answer, abortMs, ticksMs = [] } = this.#play
    this.#step({ type: 'start', nowMs: 0 })
    if (connectMs !== null) this.#later(connectMs, { type: 'connected' })
    if (answer) this.#answer(answer.atMs, answer.status, answer.message)
    if (abortMs !== undefined) {
      this.#later(abortMs, { type: 'abort', failure: { code: 'aborted', message: 'by test' } })
    }
    for (const atMs of ticksMs) this.#later(atMs, { type: 'tick' })
    this.#announce()
    let events = 0
    while (this.#conversation.phase !== 'closed' || this.#queue.length > 0) {
      assert(++events < EVENTS_MAX, 'the conversation ends')
      this.#step(this.#next())
    }
    return {
      actions: this.#actions,
      worker: this.#worker,
      conversation: this.#conversation,
      freedTooEarly: this.#freedTooEarly,
      events,
    }
  }

  /** The earliest event, or a tick at the conversation's own deadline when that comes first. */
  #next(): ConversationEvent {
    this.#queue.sort((a, b) => a.nowMs - b.nowMs || a.order - b.order)
    const deadlineMs = this.#conversation.deadlineMs
    const head = this.#queue[0]
    if (deadlineMs !== null && (head === undefined || deadlineMs < head.nowMs)) {
      return { type: 'tick', nowMs: Math.max(deadlineMs, this.#nowMs) }
    }
    assert(head !== undefined, 'an open conversation has a deadline')
    return this.#queue.shift() as Timed
  }

  #step(event: ConversationEvent): void {
    this.#nowMs = event.nowMs
    if (event.type === 'connected') this.#linked = true
    if (event.type === 'disconnected') this.#linked = false
    for (const action of this.#conversation.step(event)) {
      this.#actions.push({ ...action, atMs: event.nowMs })
      this.#act(action)
    }
  }

  #act(action: ConversationAction): void {
    if (action.type === 'send') {
      assert(this.#linked, 'sends only to a worker that is connected')
      const acts = this.#worker.take(action.body)
      let startMs = Math.max(this.#nowMs + 1, this.#workerFreeMs)
      for (const act of acts) {
        this.#workerFreeMs = Math.max(this.#workerFreeMs, startMs + act.afterMs)
        if (act.type === 'reply' && this.#worker.mapsRing) {
          this.#ringReadUntilMs = startMs + act.afterMs
        }
        this.#perform(act, startMs + act.afterMs)
        startMs += 1
      }
    } else if (action.type === 'ring_free') {
      this.#freedTooEarly = this.#worker.mapsRing || this.#nowMs < this.#ringReadUntilMs
    } else if (action.type === 'opened' || action.type === 'acked') {
      this.#announce()
    }
  }

  #perform(act: WorkerAct, atMs: number): void {
    if (act.type === 'reply') this.#later(atMs, { type: 'reply', body: act.body })
    else if (act.type === 'disconnected') this.#later(atMs, { type: 'disconnected' })
    else if (this.#play.http !== false) {
      const died = act.error === 'the process died'
      const status = act.error === null ? 200 : died ? 0 : 500
      this.#answer(atMs + HTTP_MS, status, act.error ?? '')
    }
  }

  #answer(atMs: number, status: number, message: string): void {
    if (this.#answered) return
    this.#answered = true
    this.#later(atMs, { type: 'http', ok: status === 200, status, message })
  }

  /** Announces one list ahead of the acknowledgements, as an executor with a full ring does. */
  #announce(): void {
    if (this.#announced < this.#play.buckets) {
      const list = Uint8Array.of(0x80, 4, 0x5d, 0x2e)
      this.#later(this.#nowMs, { type: 'announce', bucket: this.#announced++, list })
    } else if (this.#announced++ === this.#play.buckets) {
      this.#later(this.#nowMs, { type: 'end' })
    }
  }

  #later(atMs: number, event: Unstamped): void {
    const delay = event.type === 'announce' ? 0 : (this.#play.delayMs?.(this.#order) ?? 0)
    this.#queue.push({ ...event, nowMs: atMs + delay, order: this.#order++ } as Timed)
  }
}
