import {
  CkptError,
  type EngineReport,
  type Failure,
  type UpdateRequest,
  type UpdateState,
} from '@ckpt/core'
import { clockMs } from '../clock.ts'
import { UpdateRecord } from './record.ts'
import type { RunContext } from './run-context.ts'
import { UpdateRun } from './run.ts'
import type { UpdateSpec } from './spec.ts'

const QUEUED_MAX = 16
/** One straight into the engines' memory, and, where that cannot be, one through the ring, and one for the next update. */
const RUNS_PER_UPDATE = 3
/** Ended updates that are remembered. */
const ENDED_MAX = 100
/** Those whose timelines are kept: they have a span per bucket, stage and rank. */
const TIMELINES_MAX = 10

interface Queued {
  readonly spec: UpdateSpec
  readonly record: UpdateRecord
  readonly acceptedMs: number
  readonly timer: ReturnType<typeof setTimeout>
}

interface Running {
  readonly id: string
  readonly run: UpdateRun
}

/** One update at a time; the others wait their turn, which counts against their timeouts. */
export class UpdateQueue {
  readonly #context: RunContext
  readonly #records = new Map<string, UpdateRecord>()
  readonly #queue: Queued[] = []
  readonly #onEnd: (failure: Failure | null) => void
  #running: Running | null = null
  #runs = 0
  #closing: string | null = null
  #idle: PromiseWithResolvers<void> | null = null

  /** `onEnd` is told how each update ended. */
  constructor(context: RunContext, onEnd: (failure: Failure | null) => void) {
    this.#context = context
    this.#onEnd = onEnd
  }

  get runningId(): string | null {
    return this.#running?.id ?? null
  }

  get queued(): number {
    return this.#queue.length
  }

  /** @throws CkptError `shutting_down`, `update_running`, `queue_full`, `bad_request` for an id that was used */
  add(spec: UpdateSpec, ifBusy: UpdateRequest['if_busy']): UpdateRecord {
    this.#check(spec, ifBusy)
    const record = new UpdateRecord(spec.id, spec.checkpoint)
    this.#records.set(spec.id, record)
    const timer = setTimeout(() => this.#giveUp(spec), spec.timeoutMs)
    this.#queue.push({ spec, record, acceptedMs: clockMs(), timer })
    this.#next()
    return record
  }

  #check(spec: UpdateSpec, ifBusy: UpdateRequest['if_busy']): void {
    if (this.#closing !== null) throw new CkptError('shutting_down', this.#closing)
    const known = this.#records.get(spec.id)
    if (known?.ended) throw new CkptError('bad_request', `update_id ${spec.id} was used before`)
    if (known !== undefined) {
      const message = `update ${spec.id} is ${known.state.state} already`
      throw new CkptError('update_running', message, { update_id: spec.id })
    }
    const running = this.#running?.id
    if (running === undefined) return
    if (ifBusy === 'fail') {
      throw new CkptError('update_running', `update ${running} is running`, { update_id: running })
    }
    if (this.#queue.length >= QUEUED_MAX) {
      throw new CkptError('queue_full', `${QUEUED_MAX} updates are waiting`, { update_id: running })
    }
  }

  #giveUp(spec: UpdateSpec): void {
    const behind = this.#running === null ? '' : ` behind update ${this.#running.id}`
    const message = `the ${spec.timeoutMs / 1000} s of the update have passed while it waited its turn${behind}`
    this.#drop(spec.id, { code: 'update_timeout', message })
  }

  /** Ends an update that is still waiting; false when it is not. */
  #drop(id: string, failure: Failure): boolean {
    const index = this.#queue.findIndex((one) => one.spec.id === id)
    const [queued] = index === -1 ? [] : this.#queue.splice(index, 1)
    if (queued === undefined) return false
    clearTimeout(queued.timer)
    this.#end(queued.record, failure, [])
    return true
  }

  #next(): void {
    if (this.#running !== null) return
    const queued = this.#queue.shift()
    if (queued === undefined) return this.#idle?.resolve()
    clearTimeout(queued.timer)
    const { spec, record, acceptedMs } = queued
    const times = { startMs: acceptedMs, deadlineMs: acceptedMs + spec.timeoutMs }
    this.#runs += RUNS_PER_UPDATE
    const run = new UpdateRun(this.#context, spec, record, this.#runs, times)
    this.#running = { id: spec.id, run }
    record.start(new Date())
    void this.#execute(run, record)
  }

  async #execute(run: UpdateRun, record: UpdateRecord): Promise<void> {
    try {
      const report = await run.execute()
      record.timeline = run.timeline
      record.succeed(report)
      this.#onEnd(null)
    } catch (error) {
      const { failure } = CkptError.wrap(error)
      record.timeline = run.timeline
      this.#end(record, failure, run.engineReports)
    } finally {
      this.#running = null
      this.#prune()
      this.#next()
    }
  }

  #end(record: UpdateRecord, failure: Failure, engines: EngineReport[]): void {
    record.fail(failure, engines)
    this.#onEnd(failure)
  }

  #prune(): void {
    const ended = [...this.#records.values()].filter((record) => record.ended)
    for (const record of ended.slice(0, -ENDED_MAX)) this.#records.delete(record.id)
    for (const record of ended.slice(0, -TIMELINES_MAX)) record.timeline = null
  }

  /** @throws CkptError `update_not_found` */
  record(id: string): UpdateRecord {
    const record = this.#records.get(id)
    if (record === undefined) throw new CkptError('update_not_found', `there is no update ${id}`)
    return record
  }

  abort(id: string, failure: Failure): UpdateState {
    const record = this.record(id)
    if (!this.#drop(id, failure) && this.#running?.id === id) this.#running.run.fail(failure)
    return record.state
  }

  /** The ranks of a daemon are gone: an update with one of them ends. What still waits for its turn finds out then. */
  lose(ranks: readonly number[], failure: Failure): void {
    this.#running?.run.lose(ranks, failure)
  }

  /** Ends everything; resolves when the engines have been released. */
  async close(reason: string): Promise<void> {
    this.#closing = reason
    const failure: Failure = { code: 'shutting_down', message: reason }
    for (const { spec } of this.#queue.slice()) this.#drop(spec.id, failure)
    if (this.#running === null) return
    this.#idle ??= Promise.withResolvers<void>()
    this.#running.run.fail(failure)
    await this.#idle.promise
  }
}
