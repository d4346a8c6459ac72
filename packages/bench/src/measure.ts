import { measure } from 'mitata'

/** What was compared after a run. */
export interface Checked {
  /** Ranges: tensors, pieces, memories. */
  readonly compared: number
  readonly wrong: number
}

export interface Timed {
  /** Before every run, not timed: spoils what the run is to write, so that a run that writes nothing shows. */
  prepare?(): void | Promise<void>
  /** What is timed. */
  run(): void | Promise<void>
  /** After a run, not timed. */
  check(): Checked | Promise<Checked>
}

export interface Timing extends Checked {
  readonly runs: number
  readonly p50Seconds: number
  readonly p99Seconds: number
}

const RUNS_MIN = 12
const RUNS_MAX = 2000
const TIMED_NS_MIN = 100e6
/** Hashing is slower than what is measured: once the checks of a row have taken this long, only its last run is checked. */
const CHECK_MS_MAX = 1000
/** mitata runs short functions in batches; nothing could be prepared and checked in between. */
const NEVER_IN_BATCHES = -1

/** Runs until mitata has enough samples; the first runs, as far as time allows, and always the last are checked. */
export async function timeRuns(timed: Timed): Promise<Timing> {
  const tally = new Tally(timed)
  const stats = await measure(
    async function* () {
      const runs = {
        // mitata calls it before every run, outside of the time
        0: () => tally.between(),
        bench: (_prepared: unknown) => timed.run(),
      }
      yield runs as unknown as () => unknown
    },
    {
      min_samples: RUNS_MIN,
      max_samples: RUNS_MAX,
      min_cpu_time: TIMED_NS_MIN,
      batch_threshold: NEVER_IN_BATCHES,
    },
  )
  await tally.check()
  return {
    runs: stats.samples.length,
    p50Seconds: stats.p50 / 1e9,
    p99Seconds: stats.p99 / 1e9,
    compared: tally.compared,
    wrong: tally.wrong,
  }
}

/** Seconds that the work takes. */
export async function secondsOf(work: () => void | Promise<unknown>): Promise<number> {
  const beginMs = performance.now()
  await work()
  return (performance.now() - beginMs) / 1000
}

/** Seconds of one run, prepared and not checked. */
export async function secondsOfRun({ prepare, run }: Timed): Promise<number> {
  await prepare?.()
  return secondsOf(run)
}

/** NaN of nothing. */
export function median(figures: readonly number[]): number {
  return figures.toSorted((a, b) => a - b)[figures.length >> 1] ?? Number.NaN
}

class Tally implements Checked {
  compared = 0
  wrong = 0
  readonly #timed: Timed
  #ran = false
  #checkMs = 0

  constructor(timed: Timed) {
    this.#timed = timed
  }

  async between(): Promise<void> {
    if (this.#ran && this.#checkMs < CHECK_MS_MAX) await this.check()
    await this.#timed.prepare?.()
    this.#ran = true
  }

  async check(): Promise<void> {
    const beginMs = performance.now()
    const { compared, wrong } = await this.#timed.check()
    this.#checkMs += performance.now() - beginMs
    this.compared += compared
    this.wrong += wrong
  }
}
