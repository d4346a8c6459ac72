import type { Handle, Library } from '@ckpt/cuda'
import type { SourceReading } from '../types.ts'
import type { HeldPlan } from './plans.ts'

/**
 * How much of a checkpoint that is still being read can be copied already. Both the read and the plan follow the order of the
 * source space, so it is a number of segments that grows. A read that has failed stops to grow: whoever started it says why.
 */
export class SourceReads {
  readonly #library: Library
  readonly #signal: Handle
  readonly #held: HeldPlan
  readonly #readings: readonly (SourceReading | null)[]
  #segments = 0
  /** Whoever waits for more would be woken at once, again and again. */
  #failed = false

  /** @param readings per owner; null: all its bytes are there */
  constructor(
    library: Library,
    signal: Handle,
    held: HeldPlan,
    readings: readonly (SourceReading | null)[],
  ) {
    this.#library = library
    this.#signal = signal
    this.#held = held
    this.#readings = readings
  }

  /** Segments `[0, n)` were in host memory at the last look. */
  get segments(): number {
    return this.#segments
  }

  /** Looks how many are there now. While there are more to come, the signal is woken when the next one is there. */
  take(): number {
    const { segmentCount } = this.#held.plan
    if (this.#readings.every((reading) => reading === null)) this.#segments = segmentCount
    const filled = this.#readings.map((reading) => this.#filledTo(reading))
    while (this.#segments < segmentCount) {
      const { owner, end } = this.#source(this.#segments)
      if (end > (filled[owner] as number)) break
      this.#segments++
    }
    if (this.#segments < segmentCount) this.#awaitSegment(this.#segments)
    return this.#segments
  }

  /** Offset up to which the source space of an owner is filled. */
  #filledTo(reading: SourceReading | null): number {
    if (reading === null) return Number.POSITIVE_INFINITY
    const { piecesPrefix, state } = this.#library.readQuery(reading.read)
    if (state === 'failed') this.#failed = true
    return reading.pieceStarts[piecesPrefix] ?? Number.POSITIVE_INFINITY
  }

  #source(segment: number): { owner: number; end: number } {
    const { plan } = this.#held
    const owner = plan.bucketOwner[this.#held.bucketOf(segment)] as number
    return { owner, end: plan.segmentSource[segment]! + plan.segmentSize[segment]! }
  }

  #awaitSegment(segment: number): void {
    if (this.#failed) return
    const { owner, end } = this.#source(segment)
    const reading = this.#readings[owner] as SourceReading
    this.#library.readNotify(reading.read, piecesBelow(reading.pieceStarts, end), this.#signal)
  }
}

/** How many pieces begin below `end`: those fill the space up to there. */
export function piecesBelow(pieceStarts: Float64Array, end: number): number {
  let low = 0
  let high = pieceStarts.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (pieceStarts[middle]! < end) low = middle + 1
    else high = middle
  }
  return low
}
