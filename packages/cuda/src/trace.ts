import { isMainThread, threadId } from 'node:worker_threads'

/** Steps of the histogram per doubling of the time: a step is 9 %. */
const STEPS = 8
const BUCKETS = 48 * STEPS

/** Call times of one symbol in nanoseconds, as a histogram of fixed size. */
class CallTimes {
  readonly #counts = new Uint32Array(BUCKETS)
  calls = 0
  totalNs = 0

  add(ns: number): void {
    const bucket = Math.min(BUCKETS - 1, Math.floor(Math.log2(Math.max(1, ns)) * STEPS))
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1
    this.calls++
    this.totalNs += ns
  }

  /** Microseconds below which the fraction of the calls lies. */
  quantileUs(fraction: number): number {
    const wanted = Math.ceil(this.calls * fraction)
    let seen = 0
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.#counts[bucket] ?? 0
      if (seen >= wanted) return 2 ** ((bucket + 1) / STEPS) / 1000
    }
    return 0
  }
}

/** What `CKPT_TRACE_FFI=1` records: count, p50 and p99 of each native function that this thread has called. */
export class FfiTrace {
  readonly #times = new Map<string, CallTimes>()

  static fromEnvironment(): FfiTrace | null {
    if (process.env.CKPT_TRACE_FFI !== '1') return null
    const trace = new FfiTrace()
    process.on('exit', () => process.stderr.write(trace.table()))
    return trace
  }

  wrap<A extends unknown[], R>(symbol: string, call: (...args: A) => R): (...args: A) => R {
    const times = new CallTimes()
    this.#times.set(symbol, times)
    return (...args) => {
      const startNs = Bun.nanoseconds()
      try {
        return call(...args)
      } finally {
        times.add(Bun.nanoseconds() - startNs)
      }
    }
  }

  /** One row per called symbol, the most expensive first. */
  table(): string {
    const called = [...this.#times].filter(([, times]) => times.calls > 0)
    if (called.length === 0) return ''
    called.sort((a, b) => b[1].totalNs - a[1].totalNs)
    const thread = isMainThread ? 'main thread' : `worker ${threadId}`
    const rows = called.map(([symbol, times]) => {
      const figures = [times.quantileUs(0.5), times.quantileUs(0.99), times.totalNs / 1e6]
      const columns = figures.map((figure) => figure.toFixed(2).padStart(12))
      return `${symbol.padEnd(28)}${String(times.calls).padStart(10)}${columns.join('')}\n`
    })
    return `ffi calls of ${thread}:       calls      p50 us      p99 us    total ms\n${rows.join('')}`
  }
}
