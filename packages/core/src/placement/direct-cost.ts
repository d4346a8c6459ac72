import {
  BUCKET_BYTES_MIN,
  chooseBucketBytes,
  type CostJob,
  type CostRates,
  predictSeconds,
} from '../plan/cost.ts'

const RING_BUCKET_BYTES_MOST = 256 * 2 ** 20
/** Until all ranks have a ring and all engines have mapped theirs, beside what a direct update takes too. Two ranks of a vLLM on H200s took 35 ms. */
const RING_OPEN_SECONDS = 0.03

/** What a host reads of others' memory, whatever its ranks do with it. */
export interface HostReads {
  readonly bytes: number
  readonly bytesPerSecond: number
}

/** What is known of an update that can be direct. */
export interface DirectJob {
  /** Of each rank: bytes that are copied into its engine's memory. */
  readonly placedBytes: readonly number[]
  /** Of each host. */
  readonly reads: readonly HostReads[]
}

/** Seconds of its copies: all links work side by side, and the slowest one bounds it. */
export function directSeconds(
  { placedBytes, reads }: DirectJob,
  { h2dBytesPerSecond }: Pick<CostRates, 'h2dBytesPerSecond'>,
): number {
  const copies = placedBytes.map((bytes) => bytes / h2dBytesPerSecond)
  return Math.max(0, ...copies, ...reads.map(readSeconds))
}

/**
 * Seconds of the same update through rings, where each rank copies its share and all get everything by broadcasts.
 *
 * @param reads of each host: what it does not own
 */
export function ringSeconds(job: CostJob, reads: readonly HostReads[], rates: CostRates): number {
  const bucketBytes = Math.max(
    BUCKET_BYTES_MIN,
    chooseBucketBytes(job, RING_BUCKET_BYTES_MOST, rates),
  )
  const transfer = Math.max(predictSeconds(job, bucketBytes, rates), ...reads.map(readSeconds))
  return RING_OPEN_SECONDS + transfer
}

function readSeconds({ bytes, bytesPerSecond }: HostReads): number {
  return bytes / bytesPerSecond
}
