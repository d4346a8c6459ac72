import type { TensorTable } from '../checkpoint/table.ts'
import { BucketLayout } from './bucket-layout.ts'
import { BUCKET_TENSORS_MAX } from './cost.ts'
import type { PlanInput } from './plan.ts'
import { bucketNode, RankTurns } from './rank-turns.ts'
import { SourceMap } from './source-map.ts'

/** A bucket before it has a place in the ring. */
export interface Bucket {
  readonly owner: number
  /** The rank that copies it. */
  readonly rank: number
  /** Its tensors, in the order in which they are copied and announced. */
  readonly tensors: Uint32Array
  /** From its start to the end of its last tensor. */
  readonly bytes: number
  /** Share of its owner's bytes that come before it. */
  readonly turn: number
}

export interface CutTensors {
  readonly buckets: Bucket[]
  /** Per tensor: place relative to the start of its bucket. */
  readonly relative: Float64Array
  /** Per tensor: 1 when it continues the copy of its predecessor in the bucket. */
  readonly joined: Uint8Array
}

/**
 * Cuts each owner's tensors, in natural order, into buckets of at most `bucketBytes`, and lets the
 * owners take turns: the one that has sent the smallest share of its bytes is next, so that all
 * links are loaded to the end.
 */
export function cutBuckets(input: PlanInput, sourceMaps: readonly SourceMap[]): CutTensors {
  const { table } = input
  const relative = new Float64Array(table.names.length)
  const joined = new Uint8Array(table.names.length)
  const position = new Uint32Array(table.names.length)
  const buckets: Bucket[] = []
  tensorsByOwner(table, sourceMaps.length).forEach((tensors, owner) => {
    const source = sourceMaps[owner] as SourceMap
    inSourceOrder(table, tensors).forEach((tensor, k) => {
      position[tensor] = k
    })
    const layout = new BucketLayout(table, source, input.ringBytes, position, relative, joined)
    cutOwner(input, owner, tensors, layout, source, buckets)
  })
  buckets.sort((a, b) => a.turn - b.turn || a.owner - b.owner)
  return { buckets, relative, joined }
}

/** Per owner: its tensors in natural order, as parts of one array. */
function tensorsByOwner(table: TensorTable, ownerCount: number): Uint32Array[] {
  const counts = new Uint32Array(ownerCount)
  for (const owner of table.owners) counts[owner] = (counts[owner] as number) + 1
  const parts = Array.from(counts, (count) => new Uint32Array(count))
  const filled = new Uint32Array(ownerCount)
  table.owners.forEach((owner, tensor) => {
    const at = filled[owner] as number
    ;(parts[owner] as Uint32Array)[at] = tensor
    filled[owner] = at + 1
  })
  return parts
}

function cutOwner(
  input: PlanInput,
  owner: number,
  tensors: Uint32Array,
  layout: BucketLayout,
  source: SourceMap,
  buckets: Bucket[],
): void {
  const { table } = input
  const limit = Math.min(input.bucketBytes, input.ringBytes)
  const ranks = new RankTurns(input.ownerRanks[owner] as readonly number[], input.rankNodes ?? [])
  const hasNodes = input.rankNodes !== undefined && source.hasNodes
  const totalBytes = tensors.reduce((sum, tensor) => sum + (table.bytes[tensor] as number), 0)
  let sentBytes = 0
  let first = 0
  const close = (end: number): void => {
    const part = tensors.subarray(first, end)
    orderBySource(table, part, layout, limit)
    const rank = ranks.next(hasNodes ? bucketNode(table, part, source) : -1)
    const turn = totalBytes === 0 ? 0 : sentBytes / totalBytes
    buckets.push({ owner, rank, tensors: part, bytes: layout.end, turn })
    for (const tensor of part) sentBytes += table.bytes[tensor] as number
    first = end
  }
  layout.reset()
  for (let k = 0; k < tensors.length; k++) {
    const tensor = tensors[k] as number
    const full = layout.end > 0 && layout.endWith(tensor) > limit
    if (full || k - first === BUCKET_TENSORS_MAX) {
      close(k)
      layout.reset()
    }
    layout.add(tensor)
  }
  if (first < tensors.length) close(tensors.length)
}

/**
 * Puts the tensors of a bucket into the order of the source when that takes fewer copies and no
 * more room: files in place have an order of their own (by item size, then by name as text).
 */
function orderBySource(
  table: TensorTable,
  tensors: Uint32Array,
  layout: BucketLayout,
  limit: number,
): void {
  if (ascends(table, tensors)) return
  const { end, runCount } = layout
  const sorted = sortedBySource(table, tensors)
  layOut(sorted, layout)
  if (layout.runCount < runCount && layout.end <= Math.max(limit, end)) tensors.set(sorted)
  else layOut(tensors, layout)
}

/** The tensors that have bytes, as they follow each other in the source. */
function inSourceOrder(table: TensorTable, tensors: Uint32Array): Uint32Array {
  const moved = tensors.filter((tensor) => (table.bytes[tensor] as number) > 0)
  return ascends(table, moved) ? moved : sortedBySource(table, moved)
}

function ascends({ offsets }: TensorTable, tensors: Uint32Array): boolean {
  for (let k = 1; k < tensors.length; k++) {
    const before = offsets[tensors[k - 1] as number] as number
    if (before > (offsets[tensors[k] as number] as number)) return false
  }
  return true
}

function sortedBySource({ offsets }: TensorTable, tensors: Uint32Array): Uint32Array {
  return tensors.slice().sort((a, b) => {
    return (offsets[a] as number) - (offsets[b] as number) || a - b
  })
}

function layOut(tensors: Uint32Array, layout: BucketLayout): void {
  layout.reset()
  for (const tensor of tensors) layout.add(tensor)
}
