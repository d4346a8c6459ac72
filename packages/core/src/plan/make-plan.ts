import { assert } from '../checkpoint/assert.ts'
import { digestTensors } from '../checkpoint/build-table.ts'
import { Digest } from '../checkpoint/digest.ts'
import type { TensorTable } from '../checkpoint/table.ts'
import { BUCKET_ALIGNMENT } from './bucket-layout.ts'
import { type Bucket, type CutTensors, cutBuckets } from './cut-buckets.ts'
import type { Plan, PlanInput } from './plan.ts'
import { takeNetworkTurns } from './network-turns.ts'
import { RingLedger } from './ring-ledger.ts'
import { SourceMap } from './source-map.ts'

/**
 * Makes the plan of an update: a pure function, so that every daemon that has the same input has
 * the same plan.
 *
 * Each bucket follows its predecessor in the ring, or starts at 0 when it does not fit before the
 * end; one that does not fit beside its successor ends where the ring ends. A segment waits for the latest bucket that has held any of its own bytes; in `serial` mode
 * for the bucket before. O(n log n) in the tensors.
 */
export function makePlan(input: PlanInput): Plan {
  check(input)
  const sourceMaps = input.sources.map((space) => new SourceMap(space))
  const cut = cutBuckets(input, sourceMaps)
  const buckets = input.network ? takeNetworkTurns(input.network, cut.buckets) : cut.buckets
  const writer = new PlanWriter(input, cut, sourceMaps)
  buckets.forEach((bucket, g) => {
    writer.add(bucket, buckets[g + 1]?.bytes ?? 0)
  })
  return writer.finish()
}

function check(input: PlanInput): void {
  const { table, ringBytes, sources, ownerRanks } = input
  assert(ringBytes > 0 && ringBytes % BUCKET_ALIGNMENT === 0, `a ring of ${ringBytes} bytes`)
  assert(input.bucketBytes > 0 && input.segmentBytes > 0, 'buckets and segments have bytes')
  assert(sources.length === ownerRanks.length, 'every owner has a source space and ranks')
  for (let i = 0; i < table.names.length; i++) {
    const ranks = ownerRanks[table.owners[i] as number]
    if (ranks !== undefined && ranks.length > 0 && (table.bytes[i] as number) <= ringBytes) continue
    // the words are made for the one that fails only
    const name = table.names[i]
    assert(ranks !== undefined && ranks.length > 0, `no rank can copy '${name}'`)
    assert((table.bytes[i] as number) <= ringBytes, `'${name}' is larger than the ring`)
  }
}

/** Gives each bucket its place in the ring and writes down its segments. */
class PlanWriter {
  private readonly ledger = new RingLedger()
  private ringEnd = 0
  private tensorCount = 0
  private bucketCount = 0
  private readonly order: Uint32Array
  private readonly tensorRing: Float64Array
  private readonly bucketFirstTensor: Uint32Array
  private readonly bucketFirstSegment: Uint32Array
  private readonly bucketRing: Float64Array
  private readonly bucketSize: Float64Array
  private readonly bucketOwner: Uint32Array
  private readonly bucketRank: Uint32Array
  private readonly segmentSource: number[] = []
  private readonly segmentRing: number[] = []
  private readonly segmentSize: number[] = []
  private readonly segmentAfterAck: number[] = []

  constructor(
    private readonly input: PlanInput,
    private readonly cut: CutTensors,
    private readonly sourceMaps: readonly SourceMap[],
  ) {
    const bucketCount = cut.buckets.length
    this.order = new Uint32Array(input.table.names.length)
    this.tensorRing = new Float64Array(input.table.names.length)
    this.bucketFirstTensor = new Uint32Array(bucketCount + 1)
    this.bucketFirstSegment = new Uint32Array(bucketCount + 1)
    this.bucketRing = new Float64Array(bucketCount)
    this.bucketSize = new Float64Array(bucketCount)
    this.bucketOwner = new Uint32Array(bucketCount)
    this.bucketRank = new Uint32Array(bucketCount)
  }

  add(bucket: Bucket, nextBytes: number): void {
    const g = this.bucketCount++
    const start = this.placeInRing(bucket.bytes, nextBytes)
    this.bucketRing[g] = start
    this.bucketSize[g] = bucket.bytes
    this.bucketOwner[g] = bucket.owner
    this.bucketRank[g] = bucket.rank
    this.order.set(bucket.tensors, this.tensorCount)
    this.tensorCount += bucket.tensors.length
    this.addRuns(bucket, g, start)
    // up to where the next one may start
    this.ledger.take(start, alignUp(start + bucket.bytes), g)
    this.bucketFirstTensor[g + 1] = this.tensorCount
    this.bucketFirstSegment[g + 1] = this.segmentRing.length
  }

  finish(): Plan {
    const { input } = this
    const plan: Omit<Plan, 'digest'> = {
      mode: input.mode,
      ringBytes: input.ringBytes,
      bucketBytes: input.bucketBytes,
      totalBytes: input.table.bytes.reduce((sum, bytes) => sum + bytes, 0),
      tensorCount: this.tensorCount,
      bucketCount: this.bucketCount,
      segmentCount: this.segmentRing.length,
      order: this.order,
      tensorRing: this.tensorRing,
      bucketFirstTensor: this.bucketFirstTensor,
      bucketFirstSegment: this.bucketFirstSegment,
      bucketRing: this.bucketRing,
      bucketSize: this.bucketSize,
      bucketOwner: this.bucketOwner,
      bucketRank: this.bucketRank,
      segmentSource: Float64Array.from(this.segmentSource),
      segmentRing: Float64Array.from(this.segmentRing),
      segmentSize: Float64Array.from(this.segmentSize),
      segmentAfterAck: Int32Array.from(this.segmentAfterAck),
    }
    return { ...plan, digest: planDigest(plan, input.table) }
  }

  private placeInRing(bytes: number, nextBytes: number): number {
    const { mode, ringBytes } = this.input
    if (mode === 'serial') return 0
    let start = alignUp(this.ringEnd)
    if (start + bytes > ringBytes) {
      this.ledger.wrap()
      start = 0
    } else if (alignUp(bytes) + nextBytes > ringBytes) {
      // The next one must overwrite it. Its first bytes need not, and are copied while this one is read.
      const last = alignDown(ringBytes - bytes)
      this.ledger.leave(start, last)
      start = last
    }
    this.ringEnd = start + bytes
    return start
  }

  /** Finds the runs of joined tensors, which are copied without regard to where one tensor ends. */
  private addRuns(bucket: Bucket, g: number, start: number): void {
    const { table } = this.input
    let source = 0
    let ring = 0
    let bytes = 0
    for (const tensor of bucket.tensors) {
      const at = start + (this.cut.relative[tensor] as number)
      const tensorBytes = table.bytes[tensor] as number
      this.tensorRing[tensor] = at
      if (tensorBytes === 0) continue
      if (this.cut.joined[tensor] === 1) {
        bytes = at + tensorBytes - ring
        continue
      }
      this.addSegments(bucket.owner, g, source, ring, bytes)
      source = table.offsets[tensor] as number
      ring = at
      bytes = tensorBytes
    }
    this.addSegments(bucket.owner, g, source, ring, bytes)
  }

  /** Cuts one run where a source buffer ends and into pieces of `segmentBytes`. */
  private addSegments(owner: number, g: number, source: number, ring: number, bytes: number): void {
    const sourceMap = this.sourceMaps[owner] as SourceMap
    for (let done = 0; done < bytes; ) {
      const buffer = sourceMap.bufferEnd(source + done) - (source + done)
      const size = Math.min(bytes - done, buffer, this.input.segmentBytes)
      const begin = ring + done
      this.segmentSource.push(source + done)
      this.segmentRing.push(begin)
      this.segmentSize.push(size)
      const serial = this.input.mode === 'serial'
      this.segmentAfterAck.push(serial ? g - 1 : this.ledger.latest(begin, begin + size))
      done += size
    }
  }
}

function alignDown(bytes: number): number {
  return Math.floor(bytes / BUCKET_ALIGNMENT) * BUCKET_ALIGNMENT
}

function alignUp(bytes: number): number {
  return Math.ceil(bytes / BUCKET_ALIGNMENT) * BUCKET_ALIGNMENT
}

/** 32 hex digits of every column of the plan, and of names, dtypes and shapes. */
function planDigest(plan: Omit<Plan, 'digest'>, table: TensorTable): string {
  const digest = new Digest()
  digest.string(plan.mode)
  digest.numbers([plan.ringBytes, plan.bucketBytes, plan.totalBytes])
  digestTensors(digest, table)
  digest.words(plan.order)
  digest.numbers(plan.tensorRing)
  digest.words(plan.bucketFirstTensor)
  digest.words(plan.bucketFirstSegment)
  digest.numbers(plan.bucketRing)
  digest.numbers(plan.bucketSize)
  digest.words(plan.bucketOwner)
  digest.words(plan.bucketRank)
  digest.numbers(plan.segmentSource)
  digest.numbers(plan.segmentRing)
  digest.numbers(plan.segmentSize)
  digest.words(plan.segmentAfterAck)
  return digest.hex()
}
