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

/** A direct update takes no memory of the device and no work of the engine: a ring that is hardly faster is no reason against it. */
const RING_SHARE_MOST = 0.8
/** To wait for another rank costs some: a broadcast that is hardly faster than the link is no reason for it. */
const SHARING_GAIN_LEAST = 1.1

/** What comes to a host over its network, or leaves it: the two do not disturb each other. */
export interface HostTraffic {
  readonly bytes: number
  readonly bytesPerSecond: number
}

/** What is known of an update that can be direct. */
export interface DirectJob {
  /** Of each rank: bytes that are copied into its engine's memory. */
  readonly placedBytes: readonly number[]
  /** Of each host: what it reads of others' memory, and what others read of its. */
  readonly traffic: readonly HostTraffic[]
}

/** Seconds of its copies: all links and networks work side by side, and the slowest one bounds it. */
export function directSeconds(
  { placedBytes, traffic }: DirectJob,
  { h2dBytesPerSecond }: Pick<CostRates, 'h2dBytesPerSecond'>,
): number {
  const copies = placedBytes.map((bytes) => bytes / h2dBytesPerSecond)
  return Math.max(0, ...copies, ...traffic.map(trafficSeconds))
}

/**
 * Seconds of the same update through rings, where each rank copies its share and all get everything by broadcasts.
 *
 * @param traffic of each host: what it does not own comes to it, and what it owns leaves it once, however many hosts need it
 */
export function ringSeconds(
  job: CostJob,
  traffic: readonly HostTraffic[],
  rates: CostRates,
): number {
  const bucketBytes = Math.max(
    BUCKET_BYTES_MIN,
    chooseBucketBytes(job, RING_BUCKET_BYTES_MOST, rates),
  )
  const transfer = Math.max(predictSeconds(job, bucketBytes, rates), ...traffic.map(trafficSeconds))
  return RING_OPEN_SECONDS + transfer
}

/** Whether an update that can be direct had better go through the ring. */
export function isRingBetter(ring: number, direct: number): boolean {
  return ring < RING_SHARE_MOST * direct
}

/** Whether ranks of a host had better take from each other's engines what several of them need than each copy it. */
export function doesSharingPay(
  rates: Pick<CostRates, 'h2dBytesPerSecond' | 'broadcastBytesPerSecond'>,
): boolean {
  return rates.broadcastBytesPerSecond >= SHARING_GAIN_LEAST * rates.h2dBytesPerSecond
}

function trafficSeconds({ bytes, bytesPerSecond }: HostTraffic): number {
  return bytes / bytesPerSecond
}
