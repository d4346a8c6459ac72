/** Bytes that came from one place of host memory without a gap. */
interface Extent {
  readonly start: number
  readonly end: number
  /** Handle of the source buffer; {@link NOTHING}: nobody knows what lies there. */
  readonly buffer: number
  /** Where in the buffer the byte at `start` came from. */
  readonly offset: number
}

const NOTHING = -1

/** Device memory that knows of each byte where it came from. */
export class RingMemory {
  readonly bytes: number
  freed = false
  /** Who is reading it. */
  readonly readers = new Set<object>()
  #extents: Extent[] = []

  constructor(bytes: number) {
    this.bytes = bytes
  }

  write(start: number, bytes: number, buffer: number, offset: number): void {
    if (bytes === 0) return
    const end = start + bytes
    this.#extents = [...this.#outside(start, end), { start, end, buffer, offset }]
  }

  /** It is being written. */
  spoil(start: number, bytes: number): void {
    this.write(start, bytes, NOTHING, 0)
  }

  /** As it lies in another one. */
  copy(from: RingMemory, start: number, bytes: number): void {
    const end = start + bytes
    const taken = from.#extents.flatMap((one) => cut(one, start, end))
    this.#extents = [...this.#outside(start, end), ...taken]
  }

  /** Whether these bytes are those of this place in a source buffer. */
  holds(start: number, bytes: number, buffer: number, offset: number): boolean {
    const end = start + bytes
    const there = this.#extents.flatMap((one) => cut(one, start, end))
    const right = there.filter(
      (one) => one.buffer === buffer && one.offset - one.start === offset - start,
    )
    const found = right.reduce((sum, one) => sum + one.end - one.start, 0)
    return right.length === there.length && found === bytes
  }

  #outside(start: number, end: number): Extent[] {
    return this.#extents.flatMap((one) => {
      if (one.end <= start || one.start >= end) return [one]
      return [...cut(one, 0, start), ...cut(one, end, this.bytes)]
    })
  }
}

/** What of it lies in [start, end). */
function cut(one: Extent, start: number, end: number): Extent[] {
  const from = Math.max(one.start, start)
  const to = Math.min(one.end, end)
  if (from >= to) return []
  return [{ start: from, end: to, buffer: one.buffer, offset: one.offset + from - one.start }]
}
