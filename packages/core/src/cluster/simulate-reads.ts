import type { BucketRead, OwnedBucket, ReadInstance } from './receivers.ts'

/** Reads that a receiver's device has on their way at a time: the ring has no more slots than some. */
const OUTSTANDING = 16

/** Less is a rounding error. */
const NOTHING_BYTES = 1e-3

interface Queue {
  readonly reads: Running[]
  next: number
  onTheWay: number
}

interface Running {
  readonly from: number
  readonly to: number
  readonly queue: Queue
  /** Bytes. */
  left: number
  /** Bytes per second, for now. */
  rate: number
}

/** Seconds that reads over the network take. See {@link simulateDevices}. */
export function simulateReads(instance: ReadInstance, reads: readonly BucketRead[]): number {
  return Math.max(0, ...simulateDevices(instance, reads).values())
}

/**
 * When each of the receivers' devices has read what is its own, in seconds. A receiver's device begins with those that are its own in their order, some at a time;
 * devices share their rate in each direction among the reads (max-min fairness).
 */
export function simulateDevices(
  instance: ReadInstance,
  reads: readonly BucketRead[],
): ReadonlyMap<number, number> {
  const ended = new Map<number, number>()
  const rates = instance.devices.map(({ bytesPerSecond }) => bytesPerSecond)
  const waiting = queues(instance, reads)
  const running = new Set<Running>()
  let seconds = 0
  for (;;) {
    for (const queue of waiting) {
      while (queue.onTheWay < OUTSTANDING && queue.next < queue.reads.length) {
        running.add(queue.reads[queue.next++] as Running)
        queue.onTheWay++
      }
    }
    if (running.size === 0) return ended
    share(rates, running)
    let step = Number.POSITIVE_INFINITY
    for (const { left, rate } of running) step = Math.min(step, left / rate)
    seconds += step
    for (const one of running) {
      one.left -= one.rate * step
      if (one.left > NOTHING_BYTES) continue
      running.delete(one)
      ended.set(one.to, seconds)
      one.queue.onTheWay--
    }
  }
}

/** Of each device of receivers. */
function queues({ buckets }: ReadInstance, reads: readonly BucketRead[]): Queue[] {
  const byDevice = new Map<number, Queue>()
  for (const { path, bucket } of reads) {
    if (path === null) continue
    const queue = byDevice.get(path.to) ?? { reads: [], next: 0, onTheWay: 0 }
    byDevice.set(path.to, queue)
    const { bytes } = buckets[bucket] as OwnedBucket
    queue.reads.push({ ...path, queue, left: bytes, rate: 0 })
  }
  return [...byDevice.values()]
}

/** The device that gives least to each of its reads decides their rate; what they leave is shared among the others. */
function share(rates: readonly number[], running: Iterable<Running>): void {
  const open = new Set(running)
  // what is sent, then what is taken
  const left = [...rates, ...rates]
  while (open.size > 0) {
    const counts = left.map(() => 0)
    const count = (side: number, by: number) => {
      counts[side] = (counts[side] as number) + by
    }
    for (const { from, to } of open) {
      count(from, 1)
      count(rates.length + to, 1)
    }
    let [least, rate] = [-1, Number.POSITIVE_INFINITY]
    for (const [side, rest] of left.entries()) {
      const each = rest / (counts[side] as number)
      if ((counts[side] as number) > 0 && each < rate) [least, rate] = [side, each]
    }
    for (const one of open) {
      const sides = [one.from, rates.length + one.to]
      if (!sides.includes(least)) continue
      one.rate = rate
      for (const side of sides) left[side] = (left[side] as number) - rate
      open.delete(one)
    }
  }
}
