import {
  CkptError,
  type EngineReport,
  type Failure,
  type Phase,
  type TimelineRow,
  type UpdateEvent,
  type UpdateReport,
  type UpdateState,
} from '@ckpt/core'

/** Events that a slow reader may be behind; beyond it progress is dropped, which the next event repeats anyway. */
const BACKLOG_MAX = 64

type EventName = UpdateEvent['event']

/** What is known of one update, and who is told of it. */
export class UpdateRecord {
  readonly done: Promise<UpdateReport>
  /** What it did when; null: it has not ended, or that is not kept any more. */
  timeline: readonly TimelineRow[] | null = null
  readonly #streams = new Set<EventStream>()
  readonly #resolve: (report: UpdateReport) => void
  readonly #reject: (error: CkptError) => void
  #state: UpdateState

  constructor(id: string, checkpoint: string) {
    const { promise, resolve, reject } = Promise.withResolvers<UpdateReport>()
    this.done = promise
    this.#resolve = resolve
    this.#reject = reject
    // an update that nobody waits for may fail
    promise.catch(() => {})
    this.#state = {
      update_id: id,
      checkpoint,
      state: 'queued',
      phase: null,
      buckets_done: 0,
      buckets: 0,
      bytes_done: 0,
      bytes: 0,
      started_at: null,
    }
  }

  get id(): string {
    return this.#state.update_id
  }

  get state(): UpdateState {
    return this.#state
  }

  get ended(): boolean {
    return this.#state.state === 'done' || this.#state.state === 'failed'
  }

  start(startedAt: Date): void {
    this.#state = { ...this.#state, state: 'running', started_at: startedAt.toISOString() }
  }

  phase(phase: Phase): void {
    this.#change('phase', { phase })
  }

  size(buckets: number, bytes: number): void {
    this.#state = { ...this.#state, buckets, bytes }
  }

  map(map: Record<string, string>): void {
    this.#change('map', { map })
  }

  progress(bucketsDone: number, bytesDone: number): void {
    if (bucketsDone === this.#state.buckets_done) return
    this.#change('progress', { buckets_done: bucketsDone, bytes_done: bytesDone })
  }

  succeed(report: UpdateReport): void {
    if (this.ended) return
    this.#change('done', { state: 'done', phase: null, report, engines: report.engines })
    this.#resolve(report)
  }

  fail(failure: Failure, engines: EngineReport[]): void {
    if (this.ended) return
    const phase = failure.phase ?? this.#state.phase
    this.#change('failed', { state: 'failed', phase, error: failure, engines })
    this.#reject(CkptError.from(failure))
  }

  #change(event: EventName, change: Partial<UpdateState>): void {
    this.#state = { ...this.#state, ...change }
    for (const stream of this.#streams) stream.push({ event, ...this.#state })
    if (this.ended) this.#streams.clear()
  }

  /** The state of now, then every change until the update has ended. */
  events(): AsyncIterable<UpdateEvent> {
    return {
      [Symbol.asyncIterator]: () => {
        const stream = new EventStream(() => this.#streams.delete(stream))
        const { state, map } = this.#state
        const ended = state === 'done' || state === 'failed' ? state : null
        stream.push({ event: ended ?? (map === undefined ? 'phase' : 'map'), ...this.#state })
        if (ended === null) this.#streams.add(stream)
        return stream
      },
    }
  }
}

class EventStream implements AsyncIterator<UpdateEvent> {
  readonly #backlog: UpdateEvent[] = []
  readonly #left: () => void
  #waiting: ((result: IteratorResult<UpdateEvent>) => void) | null = null
  #ended = false

  constructor(left: () => void) {
    this.#left = left
  }

  push(event: UpdateEvent): void {
    if (this.#waiting !== null) {
      const resolve = this.#waiting
      this.#waiting = null
      this.#ended = isLast(event)
      return resolve({ value: event, done: false })
    }
    if (this.#backlog.length >= BACKLOG_MAX) this.#drop()
    this.#backlog.push(event)
  }

  #drop(): void {
    const progress = this.#backlog.findIndex((one) => one.event === 'progress')
    this.#backlog.splice(Math.max(0, progress), 1)
  }

  next(): Promise<IteratorResult<UpdateEvent>> {
    const event = this.#backlog.shift()
    if (event !== undefined) {
      this.#ended = isLast(event)
      return Promise.resolve({ value: event, done: false })
    }
    if (this.#ended) return Promise.resolve({ value: undefined, done: true })
    if (this.#waiting !== null) throw new Error('next() before the last one has settled')
    return new Promise((resolve) => {
      this.#waiting = resolve
    })
  }

  return(): Promise<IteratorResult<UpdateEvent>> {
    this.#left()
    this.#ended = true
    this.#backlog.length = 0
    this.#waiting?.({ value: undefined, done: true })
    this.#waiting = null
    return Promise.resolve({ value: undefined, done: true })
  }
}

function isLast(event: UpdateEvent): boolean {
  return event.event === 'done' || event.event === 'failed'
}
