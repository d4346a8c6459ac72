import { CkptError, type Failure } from '@ckpt/core'
import { log } from '../log.ts'
import type { RankLink } from '../rank/link.ts'
import { MEASURED_BYTES } from '../rank/measure.ts'
import type { RankPool } from '../rank/pool.ts'
import { StopFlag } from '../rank/stop-flag.ts'
import type { Registry } from '../registry/registry.ts'
import type { UpdateQueue } from './queue.ts'
import type { RateBook } from './rates.ts'

/** A daemon that was left alone for so long is measured: whoever starts one for an update has begun by then. */
const IDLE_MS = 1000
/** Between looks at a daemon that is never idle, or has no memory for it. */
const WAIT_MS_MAX = 60_000

/**
 * Whether nothing runs, waits, is read or may still be copied, and a measurement has room: it neither disturbs anybody nor is
 * disturbed.
 */
export function isIdle(
  queue: Pick<UpdateQueue, 'runningId' | 'queued'>,
  pool: Pick<RankPool, 'links' | 'quarantinedBytes'>,
  registry: Pick<Registry, 'busy' | 'memory'>,
): boolean {
  const { pinned_bytes: pinned, budget_bytes: budget } = registry.memory()
  return (
    !isWorking(queue, registry) &&
    pool.quarantinedBytes === 0 &&
    pool.links.every(({ busy, dead }) => !busy && dead === null) &&
    budget - pinned >= MEASURED_BYTES
  )
}

/** Whether an update runs or waits, or files are read. */
export function isWorking(
  { runningId, queued }: Pick<UpdateQueue, 'runningId' | 'queued'>,
  registry: Pick<Registry, 'busy'>,
): boolean {
  return runningId !== null || queued > 0 || registry.busy
}

/** What {@link Measuring} needs of the daemon. */
export interface MeasuringHost {
  readonly pool: Pick<RankPool, 'links'>
  readonly rates: RateBook
  /** See {@link isIdle}. */
  idle(): boolean
  /** New plans are made with other rates now. */
  measured(): void
  /** A measurement has; not when it only was stopped. */
  failed(failure: Failure): void
}

/**
 * Measures each device that nothing is known of, once, when the daemon has nothing else to do. An update that comes meanwhile
 * stops it, and waits for no more than one round of copies and the memory that is taken or given back just then.
 */
export class Measuring {
  readonly #host: MeasuringHost
  /** Devices whose measurement failed, other than by the end of a Worker: not tried again. */
  readonly #failed = new Set<string>()
  #timer: ReturnType<typeof setTimeout> | null = null
  #stop: StopFlag | null = null
  #waitMs = IDLE_MS
  #begun = false
  #paused = false

  constructor(host: MeasuringHost) {
    this.#host = host
  }

  /** The daemon serves. */
  begin(): void {
    this.#begun = true
    this.restart()
  }

  /** Something has been done: from now on the daemon may be idle. */
  restart(): void {
    if (!this.#begun) return
    this.#paused = false
    this.#waitMs = IDLE_MS
    // where one runs, or is being stopped, its end schedules the next
    if (this.#stop === null) this.#schedule()
  }

  /** An update has come: nothing is measured before the next {@link restart}. */
  pause(): void {
    this.#paused = true
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    this.#stop?.stop()
  }

  close(): void {
    this.#begun = false
    this.pause()
  }

  #schedule(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    if (this.#next() === undefined) return
    this.#timer = setTimeout(() => void this.#look(), this.#waitMs)
    this.#timer.unref()
  }

  /** Of a device that is to be measured. */
  #next(): RankLink | undefined {
    const { pool, rates } = this.#host
    return pool.links.find(
      ({ rank: { uuid } }) => !this.#failed.has(uuid) && rates.h2dBytesPerSecond(uuid) === null,
    )
  }

  async #look(): Promise<void> {
    this.#timer = null
    const link = this.#next()
    if (link === undefined) return
    const waitedMs = this.#waitMs
    this.#waitMs = 0
    const known = this.#host.idle() && (await this.#measure(link))
    if (!this.#begun || this.#paused) return
    // a restart meanwhile has set it
    if (!known && this.#waitMs === 0) {
      this.#waitMs = Math.min(WAIT_MS_MAX, Math.max(IDLE_MS, 2 * waitedMs))
    }
    this.#schedule()
  }

  /** Whether the device needs no further one. */
  async #measure(link: RankLink): Promise<boolean> {
    const { rates, measured, failed } = this.#host
    const { uuid } = link.rank
    this.#stop = new StopFlag()
    try {
      const stop = this.#stop.memory
      const { bytesPerSecond } = await link.request({ type: 'measure', stop })
      if (bytesPerSecond === null) return false
      await rates.measured(uuid, bytesPerSecond)
      const gbPerS = Number((bytesPerSecond / 1e9).toFixed(1))
      log.info('{uuid} takes {gbPerS} GB/s from pinned memory', { uuid, gbPerS })
      measured()
    } catch (error) {
      const { failure, message } = CkptError.wrap(error)
      failed(failure)
      // its successor may
      if (link.dead !== null) return false
      this.#failed.add(uuid)
      if (this.#begun) log.warn('{uuid} could not be measured: {message}', { uuid, message })
    } finally {
      this.#stop = null
    }
    return true
  }
}
