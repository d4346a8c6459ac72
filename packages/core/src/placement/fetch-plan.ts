import { assert } from '../checkpoint/assert.ts'
import type { SourceSpace } from '../checkpoint/table.ts'
import { BUCKET_ALIGNMENT } from '../plan/bucket-layout.ts'
import { cutAtBuffers } from './cut-copies.ts'
import type { DirectCopy } from './direct-copy.ts'

/** Ranges that are nearer to each other than this are read as one: a read of its own costs more than the bytes between them. */
export const GAP_BYTES = 16 * 2 ** 10
/** Of a slot of pinned memory, which a chunk is read into. */
export const SLOT_BYTES = 16 * 2 ** 20

/** Of one rank. */
const RANGES_MAX = 2 ** 16
/** Of one rank, before they are merged: a checkpoint of a terabyte can have a hundred million rows. */
const ROWS_MAX = 2 ** 20

/** Rows of three numbers: owner, offset of the first byte in its source space, offset behind the last one; ascending by owner and offset, disjoint. */
export type SourceRanges = Float64Array

/** What a host reads over the network, once, for all of its ranks. */
export interface FetchPlan {
  /**
   * Rows of three numbers: owner, offset of the first byte in its source space, offset behind the last one; in the order in which they
   * are read. Those of one owner follow one another and ascend.
   */
  readonly ranges: Float64Array
  /**
   * Index of the first range of each chunk, and the number of ranges. The ranges of a chunk lie one after another in its slot, each from
   * a multiple of 256 bytes on.
   */
  readonly chunks: Uint32Array
  readonly slotBytes: number
}

export interface FetchedCopies {
  readonly copies: readonly DirectCopy[]
  /** Index of the first copy of each chunk, and the number of copies. */
  readonly starts: Uint32Array
}

/** What the copies of one rank need of the owners that `isFetched`. So many far rows that they would be too many ranges are read with what lies between them. */
export function neededRanges(
  copies: readonly DirectCopy[],
  isFetched: (owner: number) => boolean,
): SourceRanges {
  const fetched = copies.filter(({ owner }) => isFetched(owner))
  let gapBytes = GAP_BYTES
  while (farRows(fetched, gapBytes) > ROWS_MAX) gapBytes *= 2
  const spans = new SpansOfOwners()
  for (const copy of fetched) addRows(spans, copy, gapBytes)
  const owners = spans.owners.toSorted((a, b) => a - b)
  assert(owners.length <= RANGES_MAX, `a rank needs bytes of ${owners.length} owners`)
  let ranges = spans.merged(owners, gapBytes)
  while (ranges.length > 3 * RANGES_MAX) {
    gapBytes *= 2
    ranges = spans.merged(owners, gapBytes)
  }
  return Float64Array.from(ranges)
}

/** How many rows are ranges of their own besides one of each copy. */
function farRows(copies: readonly DirectCopy[], gapBytes: number): number {
  return copies.reduce((rows, { sourcePitch, width, height }) => {
    return sourcePitch - width < gapBytes ? rows : rows + height - 1
  }, 0)
}

function addRows(spans: SpansOfOwners, copy: DirectCopy, gapBytes: number): void {
  const { owner, source, sourcePitch, width, height } = copy
  if (sourcePitch - width < gapBytes) {
    spans.add(owner, source, source + (height - 1) * sourcePitch + width)
    return
  }
  for (let row = 0; row < height; row++) {
    spans.add(owner, source + row * sourcePitch, source + row * sourcePitch + width)
  }
}

/** What is needed of each owner: in any order, overlaps too. */
class SpansOfOwners {
  private readonly spans = new Map<number, { begins: number[]; ends: number[] }>()

  get owners(): number[] {
    return [...this.spans.keys()]
  }

  add(owner: number, begin: number, end: number): void {
    const known = this.spans.get(owner)
    if (known === undefined) this.spans.set(owner, { begins: [begin], ends: [end] })
    else {
      known.begins.push(begin)
      known.ends.push(end)
    }
  }

  /** As rows of three numbers, the owners in this order. */
  merged(owners: readonly number[], gapBytes: number): number[] {
    const ranges: number[] = []
    for (const owner of owners) {
      const { begins, ends } = this.spans.get(owner) ?? { begins: [], ends: [] }
      // each sorted by itself: where k spans have ended before the next one begins, they are those that began first
      const from = Float64Array.from(begins).sort()
      const to = Float64Array.from(ends).sort()
      let first = 0
      for (let k = 0; k < from.length; k++) {
        const next = from[k + 1]
        const end = to[k] as number
        if (next !== undefined && next - end < gapBytes) continue
        ranges.push(owner, from[first] as number, end)
        first = k + 1
      }
    }
    return ranges
  }
}

/**
 * Plans what one host reads. Hosts begin with different owners, each with those of the next host, so that not all of them read from the
 * same one at first.
 *
 * @param ownerNodes the host of each owner
 * @param needs of each of the host's ranks: see {@link neededRanges}
 * @returns null: nothing is to be read
 */
export function planFetches(
  node: number,
  ownerNodes: readonly number[],
  needs: readonly SourceRanges[],
  slotBytes = SLOT_BYTES,
): FetchPlan | null {
  assert(Number.isSafeInteger(slotBytes) && slotBytes > 0, `a slot has ${slotBytes} bytes`)
  const spans = new SpansOfOwners()
  for (const ranges of needs) {
    for (let at = 0; at < ranges.length; at += 3) {
      spans.add(ranges[at] as number, ranges[at + 1] as number, ranges[at + 2] as number)
    }
  }
  const nodeOf = (owner: number) => {
    const owned = ownerNodes[owner]
    assert(owned !== undefined, `nobody knows the host of owner ${owner}`)
    return owned
  }
  const nodeCount = ownerNodes.reduce((most, one) => Math.max(most, one), node) + 1
  const turn = (owner: number) => (nodeOf(owner) - node + nodeCount) % nodeCount
  const owners = spans.owners.toSorted((a, b) => turn(a) - turn(b) || a - b)
  const needed = spans.merged(owners, GAP_BYTES)
  return needed.length === 0 ? null : fillSlots(needed, nodeOf, slotBytes)
}

/** A range that does not fit into what is left of a slot begins the next one; one that is longer than a slot is cut. */
function fillSlots(
  needed: readonly number[],
  nodeOf: (owner: number) => number,
  slotBytes: number,
): FetchPlan {
  const ranges: number[] = []
  const chunks: number[] = []
  let node = -1
  let filledBytes = 0
  for (let row = 0; row < needed.length; row += 3) {
    const owner = needed[row] as number
    const end = needed[row + 2] as number
    for (let begin = needed[row + 1] as number; begin < end; ) {
      const bytes = Math.min(slotBytes, end - begin)
      if (nodeOf(owner) !== node || filledBytes + bytes > slotBytes) {
        chunks.push(ranges.length / 3)
        node = nodeOf(owner)
        filledBytes = 0
      }
      ranges.push(owner, begin, begin + bytes)
      filledBytes = alignUp(filledBytes + bytes)
      begin += bytes
    }
  }
  chunks.push(ranges.length / 3)
  return { ranges: Float64Array.from(ranges), chunks: Uint32Array.from(chunks), slotBytes }
}

function alignUp(bytes: number): number {
  return Math.ceil(bytes / BUCKET_ALIGNMENT) * BUCKET_ALIGNMENT
}

/** Bytes that are read of each host. */
export function fetchedBytes(
  { ranges }: FetchPlan,
  ownerNodes: readonly number[],
): Map<number, number> {
  const bytes = new Map<number, number>()
  for (let row = 0; row < ranges.length; row += 3) {
    const node = ownerNodes[ranges[row] as number] as number
    const range = (ranges[row + 2] as number) - (ranges[row + 1] as number)
    bytes.set(node, (bytes.get(node) ?? 0) + range)
  }
  return bytes
}

/** Where each range lies. Neighbouring questions are answered without a search. */
export class FetchedRanges {
  /** Index of the first range of each owner, and behind its last one. */
  private readonly runs = new Map<number, { first: number; end: number }>()
  private readonly chunkOfRange: Uint32Array
  private readonly offsets: Float64Array
  private last = 0

  constructor(private readonly plan: FetchPlan) {
    const { ranges, chunks } = plan
    const count = ranges.length / 3
    this.chunkOfRange = new Uint32Array(count)
    this.offsets = new Float64Array(count)
    let chunk = -1
    let filledBytes = 0
    for (let range = 0; range < count; range++) {
      if (range === chunks[chunk + 1]) {
        chunk++
        filledBytes = 0
      }
      this.chunkOfRange[range] = chunk
      this.offsets[range] = filledBytes
      filledBytes = alignUp(filledBytes + this.end(range) - this.begin(range))
      const owner = ranges[3 * range] as number
      const run = this.runs.get(owner)
      if (run === undefined) this.runs.set(owner, { first: range, end: range + 1 })
      else run.end = range + 1
    }
  }

  /** Index of the range that holds the byte at `offset` of the owner's source space, or -1. */
  rangeAt(owner: number, offset: number): number {
    const run = this.runs.get(owner)
    if (run === undefined) return -1
    let { first: low, end: high } = run
    if (low <= this.last && this.last < high && this.holds(this.last, offset)) return this.last
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.end(middle) <= offset) low = middle + 1
      else high = middle
    }
    if (low === run.end || !this.holds(low, offset)) return -1
    this.last = low
    return low
  }

  chunkOf(range: number): number {
    return this.chunkOfRange[range] as number
  }

  offsetInSlot(range: number): number {
    return this.offsets[range] as number
  }

  /** In the source space of its owner. */
  begin(range: number): number {
    return this.plan.ranges[3 * range + 1] as number
  }

  end(range: number): number {
    return this.plan.ranges[3 * range + 2] as number
  }

  /** The ranges of each owner. */
  get spaces(): readonly SourceSpace[] {
    const owners = [...this.runs.keys()].reduce((most, owner) => Math.max(most, owner + 1), 0)
    return Array.from({ length: owners }, (_, owner) => {
      const { first, end } = this.runs.get(owner) ?? { first: 0, end: 0 }
      const ranges = Array.from({ length: end - first }, (_, k) => first + k)
      const starts = Float64Array.from(ranges, (range) => this.begin(range))
      const bytes = Float64Array.from(ranges, (range) => this.end(range) - this.begin(range))
      return { starts, bytes }
    })
  }

  private holds(range: number, offset: number): boolean {
    return this.begin(range) <= offset && offset < this.end(range)
  }
}

/** Cuts the copies of one rank so that each lies within one range, in the order of their chunks; within a chunk by owner and source. */
export function cutAtRanges(copies: readonly DirectCopy[], plan: FetchPlan): FetchedCopies {
  const ranges = new FetchedRanges(plan)
  const { spaces } = ranges
  for (const { owner } of copies) {
    assert(spaces[owner] !== undefined, `no range is of owner ${owner}`)
  }
  const cut = cutAtBuffers(copies, spaces).map((copy) => {
    return { copy, chunk: ranges.chunkOf(ranges.rangeAt(copy.owner, copy.source)) }
  })
  cut.sort((a, b) => {
    return a.chunk - b.chunk || a.copy.owner - b.copy.owner || a.copy.source - b.copy.source
  })
  const starts = new Uint32Array(plan.chunks.length)
  for (const { chunk } of cut) starts[chunk + 1] = (starts[chunk + 1] as number) + 1
  for (let k = 1; k < starts.length; k++) {
    starts[k] = (starts[k] as number) + (starts[k - 1] as number)
  }
  return { copies: cut.map(({ copy }) => copy), starts }
}
