/**
 * Knows which bucket has last taken each byte of the ring, for a writer that goes round it in one
 * direction. Questions and entries ascend until {@link wrap}; an entry begins where the one before
 * ended, or where what was left out ends. Each is looked at a constant number of times.
 */
export class RingLedger {
  /**
   * Of earlier laps and not yet passed, the nearest one last. Where two overlap, the later bucket
   * lies nearer.
   */
  private readonly ahead: Entry[] = []
  /** Of this lap, in order. */
  private lap: Entry[] = []

  /** The writer starts again at 0. */
  wrap(): void {
    this.pass(this.lap.at(-1)?.end ?? 0)
    for (let i = this.lap.length - 1; i >= 0; i--) this.ahead.push(this.lap[i] as Entry)
    this.lap = []
  }

  /**
   * The latest bucket of an earlier lap that has bytes in `[begin, end)`, -1 when there is none.
   */
  latest(begin: number, end: number): number {
    this.pass(begin)
    let latest = -1
    for (let i = this.ahead.length - 1; i >= 0; i--) {
      const entry = this.ahead[i] as Entry
      if (entry.begin >= end) break
      if (entry.bucket > latest) latest = entry.bucket
    }
    return latest
  }

  /** The writer leaves `[begin, end)` as it is: who has taken it stays. */
  leave(begin: number, end: number): void {
    this.pass(begin)
    let from = begin
    for (let i = this.ahead.length - 1; i >= 0 && from < end; i--) {
      const entry = this.ahead[i] as Entry
      if (entry.begin >= end) break
      const to = Math.min(end, entry.end)
      this.take(Math.max(from, entry.begin), to, entry.bucket)
      from = Math.max(from, to)
    }
  }

  /** The bucket takes `[begin, end)`. */
  take(begin: number, end: number, bucket: number): void {
    if (end > begin) this.lap.push({ begin, end, bucket })
  }

  private pass(begin: number): void {
    while ((this.ahead.at(-1)?.end ?? Number.POSITIVE_INFINITY) <= begin) this.ahead.pop()
  }
}

interface Entry {
  readonly begin: number
  readonly end: number
  readonly bucket: number
}
