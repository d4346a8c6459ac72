/** Rates of one machine and one engine, measured or assumed. */
export interface CostRates {
  /** Pinned host memory to one device. */
  readonly h2dBytesPerSecond: number
  /** One broadcast to all ranks of the update. */
  readonly broadcastBytesPerSecond: number
  /** The engine's own copies out of the ring. */
  readonly reloadBytesPerSecond: number
  /** What one bucket costs beside its tensors: a round trip and the unpickling of a list. */
  readonly bucketSeconds: number
  /** What one tensor costs in the engine. */
  readonly tensorSeconds: number
}

/** What the cost model knows of an engine. */
export type EngineRates = Pick<
  CostRates,
  'bucketSeconds' | 'tensorSeconds' | 'reloadBytesPerSecond'
>

/**
 * Measured on an H100 with the plain Python worker of checkpoint-engine 0.4.2: pinned copies of 16
 * MiB and more, a broadcast over one host, D2D copies, 20 us a tensor. The round trip of a list
 * takes 76-94 us over `ipc://`, its unpickling the rest.
 */
export const DEFAULT_RATES: CostRates = {
  h2dBytesPerSecond: 54e9,
  broadcastBytesPerSecond: 62e9,
  reloadBytesPerSecond: 1500e9,
  bucketSeconds: 200e-6,
  tensorSeconds: 20e-6,
}

/** What is to be moved. */
export interface CostJob {
  readonly totalBytes: number
  readonly tensorCount: number
  /** Each has a link of its own to host memory; with one there is no broadcast. */
  readonly rankCount: number
}

const MIB = 2 ** 20

/**
 * The least bytes of a bucket that the model chooses: below, its overhead is no longer hidden
 * behind its copy.
 */
export const BUCKET_BYTES_MIN = 16 * MIB

/** Copies of 16 MiB and more run at the full rate of the link. */
export const SEGMENT_BYTES = 16 * MIB

/**
 * The most tensors of a bucket: 80 ms of a Python worker, so that progress stays visible and
 * deadlines can be short.
 */
export const BUCKET_TENSORS_MAX = 4096

const BUCKET_CHOICES = [16 * MIB, 32 * MIB, 64 * MIB, 128 * MIB, 256 * MIB]

/**
 * Seconds of a pipelined update with buckets of this size: two stages, transfer and engine, of
 * which the slower one works without a pause. Either the transfer does (then the engine's work on
 * the last bucket comes after it), or the engine (then the transfer of the first bucket comes
 * before it).
 */
export function predictSeconds(job: CostJob, bucketBytes: number, rates: CostRates): number {
  const { totalBytes, tensorCount } = job
  const bucketCount = countBuckets(job, bucketBytes)
  const linksBytesPerSecond = rates.h2dBytesPerSecond * job.rankCount
  const bytesPerSecond =
    job.rankCount > 1
      ? Math.min(linksBytesPerSecond, rates.broadcastBytesPerSecond)
      : linksBytesPerSecond
  const transfer = totalBytes / bytesPerSecond
  const tensors = tensorCount * rates.tensorSeconds + totalBytes / rates.reloadBytesPerSecond
  const engine = tensors + bucketCount * rates.bucketSeconds
  return Math.max(transfer + engine / bucketCount, transfer / bucketCount + engine)
}

/** Buckets hold whole tensors: of tensors slightly larger than half a bucket, each has its own. */
function countBuckets({ totalBytes, tensorCount }: CostJob, bucketBytes: number): number {
  if (totalBytes === 0) return 1
  const perBucket = Math.max(1, Math.floor((bucketBytes * tensorCount) / totalBytes))
  return Math.max(1, Math.ceil(totalBytes / bucketBytes), Math.ceil(tensorCount / perBucket))
}

/**
 * A larger bucket is taken when it costs no more than this: it forgives an engine slower than
 * assumed.
 */
const NEARLY_BEST = 1.01

/**
 * The bucket size, at most `most`, for a short update: the largest one whose prediction is within 1
 * % of the best. `most` itself when the model has none that small.
 */
export function chooseBucketBytes(job: CostJob, most: number, rates: CostRates): number {
  const choices = BUCKET_CHOICES.filter((bucketBytes) => bucketBytes <= most)
  const seconds = choices.map((bucketBytes) => predictSeconds(job, bucketBytes, rates))
  const best = Math.min(...seconds)
  return choices.findLast((_, i) => (seconds[i] as number) <= best * NEARLY_BEST) ?? most
}
