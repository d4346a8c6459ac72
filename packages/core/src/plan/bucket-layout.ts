import type { TensorTable } from '../checkpoint/table.ts'
import { itemBytes } from '../safetensors/dtypes.ts'
import type { SourceMap } from './source-map.ts'

/**
 * Buckets start at multiples of this in the ring; a run keeps its source's position modulo this,
 * which copies like best.
 */
export const BUCKET_ALIGNMENT = 256

/**
 * Lays the tensors of one bucket one after another, from an aligned start. A tensor that follows
 * its predecessor in the source within 256 bytes joins it: one copy moves both, and what lies
 * between them.
 */
export class BucketLayout {
  /** Bytes from the start of the bucket to the end of its last tensor. */
  end = 0
  /** Pieces that one copy each can move, as far as buffers and segments allow. */
  runCount = 0
  private sourceEnd = 0
  private lastPosition = 0

  /**
   * @param position per tensor: its place among the owner's tensors with bytes in the order of the
   *   source
   * @param ring per tensor: where it goes, relative to the bucket's start; filled by {@link add}
   * @param joined per tensor: 1 when it continues the run of its predecessor; filled by {@link add}
   */
  constructor(
    private readonly table: TensorTable,
    private readonly source: SourceMap,
    private readonly ringBytes: number,
    private readonly position: Uint32Array,
    private readonly ring: Float64Array,
    private readonly joined: Uint8Array,
  ) {}

  reset(): void {
    this.end = 0
    this.runCount = 0
  }

  /** Where the bucket would end with this tensor in it. */
  endWith(tensor: number): number {
    const bytes = this.table.bytes[tensor] as number
    if (bytes === 0) return this.end
    const gap = this.joinGap(tensor)
    return (gap < 0 ? this.fresh(tensor) : this.end + gap) + bytes
  }

  add(tensor: number): void {
    const bytes = this.table.bytes[tensor] as number
    this.joined[tensor] = 0
    if (bytes === 0) {
      this.ring[tensor] = 0
      return
    }
    const gap = this.joinGap(tensor)
    const at = gap < 0 ? this.fresh(tensor) : this.end + gap
    if (gap < 0) this.runCount++
    else this.joined[tensor] = 1
    this.ring[tensor] = at
    this.end = at + bytes
    this.sourceEnd = (this.table.offsets[tensor] as number) + bytes
    this.lastPosition = this.position[tensor] as number
  }

  /** Bytes between the last tensor and this one when they can be one run, else -1. */
  private joinGap(tensor: number): number {
    const offset = this.table.offsets[tensor] as number
    const gap = offset - this.sourceEnd
    if (this.end === 0 || gap < 0 || gap >= BUCKET_ALIGNMENT) return -1
    if ((this.end + gap) % itemBytes(this.table.dtypes[tensor] as number) !== 0) return -1
    if (gap === 0) return 0
    // what lies between must be padding: neither a hole nor a small tensor of another bucket
    const neighbours = this.position[tensor] === this.lastPosition + 1
    return neighbours && this.source.covers(this.sourceEnd - 1, offset + 1) ? gap : -1
  }

  /**
   * The first place that is at the same position modulo 256 as in the source, or aligned where the
   * source is not.
   */
  private fresh(tensor: number): number {
    const offset = this.table.offsets[tensor] as number
    const aligned = offset % itemBytes(this.table.dtypes[tensor] as number) === 0
    const phase = aligned ? offset % BUCKET_ALIGNMENT : 0
    const base = Math.floor(this.end / BUCKET_ALIGNMENT) * BUCKET_ALIGNMENT + phase
    const at = base < this.end ? base + BUCKET_ALIGNMENT : base
    // the largest tensor may need the ring from its first byte on
    const tight = this.end === 0 && at + (this.table.bytes[tensor] as number) > this.ringBytes
    return tight ? 0 : at
  }
}
