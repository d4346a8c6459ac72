import { assert } from '../checkpoint/assert.ts'
import type { SourceSpace } from '../checkpoint/table.ts'

/**
 * Finds the buffer of a byte of one owner's source space. Neighbouring questions are answered
 * without a search.
 */
export class SourceMap {
  private last = 0

  constructor(private readonly space: SourceSpace) {
    const { starts, bytes, nodes } = space
    assert(
      starts.length === bytes.length && starts.length === (nodes ?? starts).length,
      'starts, bytes and nodes of the source buffers differ in number',
    )
    for (let k = 1; k < starts.length; k++) {
      const end = (starts[k - 1] as number) + (bytes[k - 1] as number)
      assert((starts[k] as number) >= end, `source buffer ${k} overlaps the one before`)
    }
  }

  /** The end of the buffer that holds the byte at `offset`. It must be in one. */
  bufferEnd(offset: number): number {
    const buffer = this.find(offset)
    assert(buffer >= 0, `no source buffer holds byte ${offset}`)
    return this.end(buffer)
  }

  /** Whether one buffer holds all of `[begin, end)`. */
  covers(begin: number, end: number): boolean {
    const buffer = this.find(begin)
    return buffer >= 0 && end <= this.end(buffer)
  }

  /** Whether all of `[begin, end)` is in buffers, of which one ends where the next begins. */
  holds(begin: number, end: number): boolean {
    for (let at = begin; at < end; ) {
      const buffer = this.find(at)
      if (buffer < 0) return false
      at = this.end(buffer)
    }
    return true
  }

  /** Whether the NUMA node of any buffer is known. */
  get hasNodes(): boolean {
    return this.space.nodes?.some((node) => node >= 0) ?? false
  }

  /** Adds the bytes of `[begin, end)`, all of which are in buffers, to their nodes'. */
  addNodeBytes(begin: number, end: number, nodeBytes: Map<number, number>): void {
    for (let at = begin; at < end; ) {
      const bufferEnd = Math.min(end, this.bufferEnd(at))
      const node = this.space.nodes?.[this.last] ?? -1
      if (node >= 0) nodeBytes.set(node, (nodeBytes.get(node) ?? 0) + bufferEnd - at)
      at = bufferEnd
    }
  }

  private find(offset: number): number {
    if (this.isIn(this.last, offset)) return this.last
    let low = 0
    let high = this.space.starts.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.end(middle) <= offset) low = middle + 1
      else high = middle
    }
    if (!this.isIn(low, offset)) return -1
    this.last = low
    return low
  }

  private isIn(buffer: number, offset: number): boolean {
    const start = this.space.starts[buffer]
    return start !== undefined && start <= offset && offset < this.end(buffer)
  }

  private end(buffer: number): number {
    return (this.space.starts[buffer] as number) + (this.space.bytes[buffer] as number)
  }
}
