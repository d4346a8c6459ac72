import type { Handle, Library } from '@ckpt/cuda'
import type { SourceReading } from '../types.ts'

/** What is copied, in the order of the source space: parts `[0, count)`. */
export interface CopyOrder {
  readonly count: number
  /** Whose memory a part is copied from, and the offset in its source space behind the last byte. */
  source(part: number): { readonly owner: number; readonly end: number }
}

/**
 * How much of a checkpoint that is still being read can be copied already. Both the read and the copies follow the order of the
 * source space, so it is a number of parts that grows. A read that has failed stops to grow: whoever started it says why.
 */
export class SourceReads {
  readonly #library: Library
  readonly #signal: Handle
  readonly #order: CopyOrder
  readonly #readings: readonly (SourceReading | null)[]
  #parts = 0
  /** Whoever waits for more would be woken at once, again and again. */
  #failed = false

  /** @param readings per owner; null: all its bytes are there */
  constructor(
    library: Library,
    signal: Handle,
    order: CopyOrder,
    readings: readonly (SourceReading | null)[],
  ) {
    this.#library = library
    this.#signal = signal
    this.#order = order
    this.#readings = readings
  }

  /** Parts `[0, n)` were in host memory at the last look. */
  get parts(): number {
    return this.#parts
  }

  /** Looks how many are there now. While there are more to come, the signal is woken when the next one is there. */
  take(): number {
    const { count } = this.#order
    if (this.#readings.every((reading) => reading === null)) this.#parts = count
    const filled = this.#readings.map((reading) => this.#filledTo(reading))
    while (this.#parts < count) {
      const { owner, end } = this.#order.source(this.#parts)
      if (end > (filled[owner] as number)) break
      this.#parts++
    }
    if (this.#parts < count) this.#awaitPart(this.#parts)
    return this.#parts
  }

  /** Offset up to which the source space of an owner is filled. */
  #filledTo(reading: SourceReading | null): number {
    if (reading === null) return Number.POSITIVE_INFINITY
    const { piecesPrefix, state } = this.#library.readQuery(reading.read)
    if (state === 'failed') this.#failed = true
    return reading.pieceStarts[piecesPrefix] ?? Number.POSITIVE_INFINITY
  }

  #awaitPart(part: number): void {
    if (this.#failed) return
    const { owner, end } = this.#order.source(part)
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
