import { NativeError, STATUS_ERR_TIMEOUT } from '@ckpt/cuda'
import type { Life, SimulatedTime, Timer } from './time.ts'

/** A piece of work in a stream. */
export interface Work {
  /** Calls `done` now or later. An error stays with the stream. */
  begin(done: (error: NativeError | null) => void): void
  /** Left out when something before it has failed. */
  readonly isWork: boolean
  /** Ends by itself within `limitMs`, and does so now; null: it waits for others, or takes longer. Else what it took. */
  hurry(limitMs: number): number | null
  /** What it reads and writes. */
  uses(handle: number): boolean
}

/** Work of a known length. */
export interface TimedWorkOptions {
  /** The process whose device does it. */
  readonly life: Life
  readonly durationMs: number
  /** What it reads and writes. */
  readonly handles: readonly number[]
  /** Calls what it is given when the device begins with it. */
  readonly whenTurn?: (begin: () => void) => void
  readonly start: () => void
  readonly end: () => NativeError | null
}

export class TimedWork implements Work {
  readonly isWork = true
  readonly #time: SimulatedTime
  readonly #options: TimedWorkOptions
  #timer: Timer | null = null
  #endMs = 0
  #done: ((error: NativeError | null) => void) | null = null

  constructor(time: SimulatedTime, options: TimedWorkOptions) {
    this.#time = time
    this.#options = options
  }

  begin(done: (error: NativeError | null) => void): void {
    this.#done = done
    const { whenTurn } = this.#options
    if (whenTurn === undefined) this.#start()
    else whenTurn(() => this.#start())
  }

  #start(): void {
    const { start, durationMs, life } = this.#options
    start()
    this.#endMs = this.#time.nowMs + durationMs
    this.#timer = this.#time.after(durationMs, () => this.#finish(), life)
  }

  #finish(): void {
    const done = this.#done
    this.#done = null
    done?.(this.#options.end())
  }

  hurry(limitMs: number): number | null {
    const leftMs = this.#endMs - this.#time.nowMs
    // without a timer it waits for broadcasts of others
    if (leftMs > limitMs || this.#timer === null) return null
    this.#timer.cancelled = true
    this.#finish()
    return leftMs
  }

  uses(handle: number): boolean {
    return this.#options.handles.includes(handle)
  }
}

/** Where an event was recorded. An event that is recorded again has another one, and who waits goes on waiting for this one. */
export class EventRecord {
  readonly stream: Stream | null
  complete: boolean
  error: NativeError | null = null
  readonly #waiting: (() => void)[] = []

  /** @param stream null: nowhere, which is complete */
  constructor(stream: Stream | null) {
    this.stream = stream
    this.complete = stream === null
  }

  completes(error: NativeError | null): void {
    this.complete = true
    this.error = error
    for (const told of this.#waiting.splice(0)) told()
  }

  /** Tells once, at once where it is complete. */
  whenComplete(told: () => void): void {
    if (this.complete) told()
    else this.#waiting.push(told)
  }
}

/** Does its work in order. */
export class Stream {
  error: NativeError | null = null
  readonly #work: Work[] = []
  #current: Work | null = null

  get idle(): boolean {
    return this.#current === null && this.#work.length === 0
  }

  push(work: Work): void {
    this.#work.push(work)
    if (this.#current === null) this.#next()
  }

  waitFor(record: EventRecord): void {
    this.push({
      isWork: true,
      begin: (done) => record.whenComplete(() => done(record.error)),
      hurry: (limitMs) => record.stream?.hurry(limitMs) ?? null,
      uses: () => false,
    })
  }

  record(): EventRecord {
    const record = new EventRecord(this)
    this.push({
      isWork: false,
      begin: (done) => {
        record.completes(this.error)
        done(null)
      },
      hurry: () => null,
      uses: () => false,
    })
    return record
  }

  #next(): void {
    for (;;) {
      const work = this.#work.shift()
      if (work === undefined) return
      if (work.isWork && this.error !== null) continue
      this.#current = work
      let within = true
      work.begin((error) => {
        this.error ??= error
        this.#current = null
        if (!within) this.#next()
      })
      within = false
      if (this.#current !== null) return
    }
  }

  /** Ends what ends by itself within `limitMs`; what that took, or null: not everything. */
  hurry(limitMs: number): number | null {
    let leftMs = limitMs
    while (this.#current !== null) {
      const took = this.#current.hurry(leftMs)
      if (took === null) return null
      leftMs -= took
    }
    return limitMs - leftMs
  }

  /** As `ckpt_stream_sync`. */
  sync(limitMs: number): void {
    if (this.hurry(limitMs) === null) {
      throw new NativeError('ckpt_stream_sync', STATUS_ERR_TIMEOUT, 'the stream is not idle yet')
    }
    const { error } = this
    this.error = null
    if (error !== null) throw error
  }

  uses(handle: number): boolean {
    return [this.#current, ...this.#work].some((work) => work?.uses(handle) ?? false)
  }
}
