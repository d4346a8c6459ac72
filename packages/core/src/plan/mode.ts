import type { ErrorCode, Failure } from '../api/errors.ts'
import { assert } from '../checkpoint/assert.ts'
import {
  BUCKET_BYTES_MIN,
  type CostRates,
  chooseBucketBytes,
  DEFAULT_RATES,
  SEGMENT_BYTES,
} from './cost.ts'
import type { RingMode } from './plan.ts'

export interface ModeInput {
  /** Free device memory of every rank of the update. */
  readonly freeBytes: readonly { readonly rank: number; readonly bytes: number }[]
  /** Share of the least free memory that the ring may take. */
  readonly fraction: number
  /** The largest tensor of the checkpoint. */
  readonly largest: { readonly name: string; readonly bytes: number }
  readonly totalBytes: number
  readonly tensorCount: number
  /** Asked for by a flag; raised to the largest tensor, cut down to what is free. */
  readonly ringBytes: number | null
  /**
   * Asked for by a flag: the most that one bucket may have. Without `ringBytes` the ring holds two
   * of them.
   */
  readonly bucketBytes: number | null
  readonly mode: 'auto' | RingMode
  /** What the bucket size is chosen for. */
  readonly rates?: CostRates
}

export type ModeDecision =
  | {
      readonly mode: RingMode
      readonly ringBytes: number
      readonly bucketBytes: number
      readonly segmentBytes: number
      readonly reason: string
    }
  | { readonly mode: 'refuse'; readonly failure: Failure }

/**
 * The ring is a multiple of 2 MiB, the granularity of device memory: IPC then exports exactly the
 * ring.
 */
export const RING_STEP_BYTES = 2 * 2 ** 20

const GIB = 2 ** 30

/** What the default ring holds beside the largest tensor. */
const RING_SPARE_BYTES = 256 * 2 ** 20

/**
 * Least buckets of a ring: one being filled, one being read, and two that take up the jitter of
 * both sides.
 */
const BUCKETS_PER_RING = 4

/**
 * Buckets of a ring per link: ranks take turns, and as many links are to be loaded as one broadcast
 * can follow.
 */
const BUCKETS_PER_LINK = 2

/**
 * Decides how an update runs on the memory there is (design.md, section 3): `pipelined` when the
 * ring holds the largest tensor and at least one more bucket (or the whole checkpoint), `serial`
 * when it holds only the largest tensor, else refuse. The default ring is `max(1 GiB, largest + 256
 * MiB)`, never more than the whole checkpoint or `fraction` of the least free memory.
 */
export function decideMode(input: ModeInput): ModeDecision {
  assert(input.freeBytes.length > 0, 'an update has at least one rank')
  const least = input.freeBytes.reduce((a, b) => (b.bytes < a.bytes ? b : a))
  const cap = floorTo(Math.max(0, input.fraction * least.bytes), RING_STEP_BYTES)
  const largestBytes = ceilTo(Math.max(1, input.largest.bytes), RING_STEP_BYTES)
  if (largestBytes > cap) {
    const text = `does not fit into ${freeText(input, least)}`
    return refuse(input, least, 'tensor_too_large', text)
  }
  const wholeBytes = Math.max(largestBytes, ceilTo(input.totalBytes, RING_STEP_BYTES))
  const ringBytes = Math.max(
    largestBytes,
    Math.min(wantedRingBytes(input, largestBytes), wholeBytes, cap),
  )
  const spareBytes = ringBytes - largestBytes
  const holdsAll = ringBytes >= wholeBytes
  const oneMoreBytes = Math.min(BUCKET_BYTES_MIN, input.bucketBytes ?? BUCKET_BYTES_MIN)
  const wished = input.mode === 'pipelined' && spareBytes > 0
  if (input.mode === 'serial') return serial(input, ringBytes, 'asked for')
  if (holdsAll || spareBytes >= oneMoreBytes || wished) {
    return pipelined(input, ringBytes, holdsAll ? ringBytes : spareBytes, holdsAll)
  }
  const limit = ringBytes < cap ? 'the ring asked for' : freeText(input, least)
  if (input.mode === 'pipelined') {
    return refuse(input, least, 'device_memory_exhausted', `leaves no second bucket in ${limit}`)
  }
  return serial(input, ringBytes, `${limit} holds the largest tensor, but no further bucket`)
}

function wantedRingBytes(input: ModeInput, largestBytes: number): number {
  if (input.ringBytes !== null) return ceilTo(input.ringBytes, RING_STEP_BYTES)
  if (input.bucketBytes !== null) {
    return 2 * Math.max(largestBytes, ceilTo(input.bucketBytes, RING_STEP_BYTES))
  }
  return Math.max(GIB, largestBytes + RING_SPARE_BYTES)
}

function pipelined(
  input: ModeInput,
  ringBytes: number,
  spareBytes: number,
  holdsAll: boolean,
): ModeDecision {
  const { totalBytes, tensorCount } = input
  const rankCount = input.freeBytes.length
  const job = { totalBytes, tensorCount, rankCount }
  const rates = input.rates ?? DEFAULT_RATES
  const useful = Math.ceil(rates.broadcastBytesPerSecond / rates.h2dBytesPerSecond)
  const links = Math.min(rankCount, Math.max(1, useful))
  const perRing = Math.max(BUCKETS_PER_RING, BUCKETS_PER_LINK * links)
  const most = Math.min(floorTo(ringBytes / perRing, 256), spareBytes)
  const bucketBytes =
    input.bucketBytes === null
      ? chooseBucketBytes(job, most, rates)
      : Math.min(input.bucketBytes, floorTo(ringBytes / 2, 256), spareBytes)
  const held = holdsAll ? 'the whole checkpoint' : 'the largest tensor and further buckets'
  const reason = `${input.mode === 'pipelined' ? 'asked for; ' : ''}the ring holds ${held}`
  return decided('pipelined', ringBytes, bucketBytes, reason)
}

function serial(input: ModeInput, ringBytes: number, reason: string): ModeDecision {
  const bucketBytes = Math.min(input.bucketBytes ?? ringBytes, ringBytes)
  return decided('serial', ringBytes, bucketBytes, reason)
}

function decided(
  mode: RingMode,
  ringBytes: number,
  bucketBytes: number,
  reason: string,
): ModeDecision {
  const bucket = Math.max(1, bucketBytes)
  const segmentBytes = Math.min(SEGMENT_BYTES, ceilTo(bucket, 256))
  return { mode, ringBytes, bucketBytes: bucket, segmentBytes, reason }
}

function refuse(
  input: ModeInput,
  least: { rank: number; bytes: number },
  code: ErrorCode,
  text: string,
): ModeDecision {
  const { name, bytes } = input.largest
  const message = `the largest tensor '${name}' (${bytes} bytes) ${text}`
  return {
    mode: 'refuse',
    failure: { code, message, rank: least.rank, phase: 'plan', tensor: name },
  }
}

function freeText(input: ModeInput, least: { rank: number; bytes: number }): string {
  const percent = Math.round(input.fraction * 1000) / 10
  return `${percent} % of the ${least.bytes} bytes free on rank ${least.rank}`
}

function ceilTo(bytes: number, step: number): number {
  return Math.ceil(bytes / step) * step
}

function floorTo(bytes: number, step: number): number {
  return Math.floor(bytes / step) * step
}
