/** The times at which a stage had work: overlapping spans count once. Times in milliseconds. */
export class BusyIntervals {
  readonly #ends: number[] = []
  #outstanding = 0

  /** `count` units of work were handed to the stage. */
  begin(nowMs: number, count = 1): void {
    if (count === 0) return
    if (this.#outstanding === 0) this.#ends.push(nowMs, nowMs)
    this.#outstanding += count
  }

  /** `count` units of work are complete. */
  end(nowMs: number, count = 1): void {
    if (count === 0) return
    this.#outstanding -= count
    if (this.#outstanding < 0) throw new Error('more work ended than began')
    if (this.#outstanding === 0) this.#ends[this.#ends.length - 1] = nowMs
  }

  /** Closes what is open and returns pairs of start and end. */
  take(nowMs: number): Float64Array {
    if (this.#outstanding > 0) this.end(nowMs, this.#outstanding)
    return Float64Array.from(this.#ends)
  }
}

/** Seconds that at least one of the interval lists (pairs of start and end in milliseconds) covers. */
export function unionSeconds(lists: readonly Float64Array[]): number {
  return unionOf(lists).reduce((busyMs, [start, end]) => busyMs + end - start, 0) / 1000
}

/** What none of the interval lists covers between the first start and the last end, as pairs of start and end in milliseconds. */
export function gapsBetween(lists: readonly Float64Array[]): Float64Array {
  const covered = unionOf(lists)
  const gaps = covered.slice(1).flatMap(([start], i) => [covered[i]?.[1] ?? start, start])
  return Float64Array.from(gaps)
}

/** Ascending, neither overlapping nor touching each other. */
function unionOf(lists: readonly Float64Array[]): [number, number][] {
  const spans: [number, number][] = []
  for (const list of lists) {
    for (let i = 0; i + 1 < list.length; i += 2)
      spans.push([list[i] as number, list[i + 1] as number])
  }
  spans.sort((a, b) => a[0] - b[0])
  const union: [number, number][] = []
  for (const [start, end] of spans) {
    const last = union.at(-1)
    if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], end)
    else union.push([start, end])
  }
  return union
}
