/** Bytes that came from one place of a checkpoint without a gap. */
export interface Extent {
  readonly start: number
  readonly end: number
  /** Handle of the source buffer; {@link NOTHING}: nobody knows what lies there. */
  readonly buffer: number
  /** Where in the buffer the byte at `start` came from. */
  readonly offset: number
}

const NOTHING = -1

/** Memory, of a device or of a host, that knows of each byte where it came from. */
export class TracedMemory {
  readonly bytes: number
  freed = false
  /** Who is reading it. */
  readonly readers = new Set<object>()
  /** Ascending. */
  readonly #extents: Extent[] = []

  constructor(bytes: number) {
    this.bytes = bytes
  }

  /** Nothing was ever written. */
  get blank(): boolean {
    return this.#extents.length === 0
  }

  write(start: number, bytes: number, buffer: number, offset: number): void {
    if (bytes === 0) return
    const end = start + bytes
    this.#replace(start, end, [{ start, end, buffer, offset }])
  }

  /** It is being written. */
  spoil(start: number, bytes: number): void {
    this.write(start, bytes, NOTHING, 0)
  }

  /** As it lies in another one. */
  copy(from: TracedMemory, start: number, bytes: number): void {
    this.#replace(start, start + bytes, from.#within(start, start + bytes))
  }

  /** What lies there, counted from `start`. */
  content(start: number, bytes: number): Extent[] {
    return this.#within(start, start + bytes).map((one) => moved(one, -start))
  }

  /** What was the {@link TracedMemory.content} of so many bytes of another one. */
  put(start: number, bytes: number, content: readonly Extent[]): void {
    const put = content.map((one) => moved(one, start))
    this.#replace(start, start + bytes, put)
  }

  /** Whether these bytes are those of this place in a source buffer. */
  holds(start: number, bytes: number, buffer: number, offset: number): boolean {
    const there = this.#within(start, start + bytes)
    const right = there.filter(
      (one) => one.buffer === buffer && one.offset - one.start === offset - start,
    )
    const found = right.reduce((sum, one) => sum + one.end - one.start, 0)
    return right.length === there.length && found === bytes
  }

  /** Index of the first that ends behind `at`. */
  #first(at: number): number {
    let low = 0
    let high = this.#extents.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#extents[middle] as Extent).end > at) high = middle
      else low = middle + 1
    }
    return low
  }

  #within(start: number, end: number): Extent[] {
    const found: Extent[] = []
    for (let i = this.#first(start); i < this.#extents.length; i++) {
      const one = this.#extents[i] as Extent
      if (one.start >= end) break
      found.push(...cut(one, start, end))
    }
    return found
  }

  #replace(start: number, end: number, put: readonly Extent[]): void {
    if (start === end) return
    const first = this.#first(start)
    let behind = first
    while ((this.#extents[behind]?.start ?? end) < end) behind++
    const gone = this.#extents.slice(first, behind)
    const before = gone.slice(0, 1).flatMap((one) => cut(one, 0, start))
    const after = gone.slice(-1).flatMap((one) => cut(one, end, this.bytes))
    this.#extents.splice(first, behind - first, ...before, ...put, ...after)
  }
}

/** What of it lies in [start, end). */
function cut(one: Extent, start: number, end: number): Extent[] {
  const from = Math.max(one.start, start)
  const to = Math.min(one.end, end)
  if (from >= to) return []
  return [{ start: from, end: to, buffer: one.buffer, offset: one.offset + from - one.start }]
}

function moved({ start, end, buffer, offset }: Extent, by: number): Extent {
  return { start: start + by, end: end + by, buffer, offset }
}
