import type { SourceSpace, TensorTable } from '../checkpoint/table.ts'
import type { NetworkDevice, NetworkRank } from '../cluster/receivers.ts'

export type RingMode = 'pipelined' | 'serial'

export interface PlanNetwork {
  readonly devices: readonly NetworkDevice[]
  /** Per owner. */
  readonly owners: readonly NetworkRank[]
  /** The ranks of the update. */
  readonly receivers: readonly NetworkRank[]
}

export interface PlanInput {
  readonly table: TensorTable
  /** Per owner: its source space. */
  readonly sources: readonly SourceSpace[]
  /** Per owner: the ranks that can copy from its memory; they take turns bucket by bucket. */
  readonly ownerRanks: readonly (readonly number[])[]
  /**
   * NUMA node of each rank's device, by rank; -1: unknown. A bucket is copied by a rank on its
   * bytes' node (`nodes` of the sources) where there is one that does not lead the others by too
   * many buckets. Absent: nobody asks for nodes.
   */
  readonly rankNodes?: readonly number[]
  /**
   * Owners whose memory ranks read over a network, and by whom: who copies a bucket, and when, is then `assignReceivers`' choice.
   * Absent: every owner's ranks can copy from its memory.
   */
  readonly network?: PlanNetwork
  readonly mode: RingMode
  /** Bytes of the ring, a multiple of 2 MiB and at least the largest tensor. */
  readonly ringBytes: number
  /** The most bytes a bucket has, unless one tensor alone is larger. */
  readonly bucketBytes: number
  /** The most bytes a segment has. */
  readonly segmentBytes: number
}

/**
 * The ordered list of buckets and segments of one update: pure data, the same on every rank.
 *
 * Tensor i of the table lies in the ring at `[tensorRing[i], tensorRing[i] + table.bytes[i])`, a
 * multiple of its item size. Bucket g holds the tensors `order[k]` for k in `[bucketFirstTensor[g],
 * bucketFirstTensor[g + 1])` and the segments `[bucketFirstSegment[g], bucketFirstSegment[g + 1])`.
 * Segment s copies `segmentSize[s]` bytes from `segmentSource[s]` of the owner's source space to
 * `segmentRing[s]`, once bucket `segmentAfterAck[s]` (-1: none) has been acknowledged.
 */
export interface Plan {
  readonly mode: RingMode
  readonly ringBytes: number
  readonly bucketBytes: number
  readonly totalBytes: number
  readonly tensorCount: number
  readonly bucketCount: number
  readonly segmentCount: number
  /** Tensor indices in the order in which they travel. */
  readonly order: Uint32Array
  readonly tensorRing: Float64Array
  /** Length bucketCount + 1. */
  readonly bucketFirstTensor: Uint32Array
  /** Length bucketCount + 1. */
  readonly bucketFirstSegment: Uint32Array
  readonly bucketRing: Float64Array
  readonly bucketSize: Float64Array
  readonly bucketOwner: Uint32Array
  /** The rank that copies the bucket from its daemon's memory. */
  readonly bucketRank: Uint32Array
  readonly segmentSource: Float64Array
  readonly segmentRing: Float64Array
  readonly segmentSize: Float64Array
  readonly segmentAfterAck: Int32Array
  /** Hex digest of all of the above and of the table's names, dtypes and shapes. */
  readonly digest: string
}
