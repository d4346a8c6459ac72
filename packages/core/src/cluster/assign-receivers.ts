import { CkptError } from '../api/errors.ts'
import type { BucketRead, NetworkRank, OwnedBucket, ReadInstance } from './receivers.ts'
import { simulateDevices, simulateReads } from './simulate-reads.ts'

/** A terabyte in buckets of a gigabyte. Simulating that takes 0.1 s of a plan that is kept; beyond it no order has luck any more. */
const TRIED_MAX = 1024
const SLOWED_ROUNDS = 2

/**
 * Who reads which bucket, in an order that keeps every device of owners and receivers at work: each sends and takes its share of any
 * stretch of the order. What a receiver's host has is read there. A device has no more to do than its part of the whole, as much as
 * its rate allows, and one bucket. Of up to {@link TRIED_MAX} buckets the order is the fastest of several in {@link simulateReads}, turns over the
 * devices, as checkpoint-engine 0.4.2 takes them, among them.
 *
 * @returns a read of every bucket
 * @throws CkptError `bad_request`: there is no receiver, a device has no rate, or bytes have to go over devices that their owner or
 * all receivers lack
 */
export function assignReceivers(instance: ReadInstance): BucketRead[] {
  const { buckets, owners, receivers } = instance
  if (receivers.length === 0) throw new CkptError('bad_request', 'there is no receiver')
  for (const rank of [...owners, ...receivers]) requireRates(instance, rank)
  const local: BucketRead[] = []
  const remote: number[] = []
  const nearest = new Turns(receivers.map(() => 1))
  const nearOwner = owners.map((owner) => receiversOf(receivers, owner))
  for (const [bucket, { owner, bytes }] of buckets.entries()) {
    const near = nearOwner[owner] as number[]
    if (near.length === 0) remote.push(bucket)
    else local.push({ bucket, receiver: nearest.take(near, bytes), path: null })
  }
  if (remote.length === 0) return local
  const sends = senders(instance, remote)
  const by = (key: 'begin' | 'middle') =>
    sends.toSorted((a, b) => a[key] - b[key] || a.bucket - b.bucket)
  const rates = instance.devices.map(({ bytesPerSecond }) => bytesPerSecond)
  const paced = takers(instance, by('middle'), rates)
  if (buckets.length > TRIED_MAX) return merge(instance, local, paced)
  const others = [takers(instance, by('begin'), rates), inTurns(instance, remote)]
  const fastest = [
    ...slowed(instance, by('middle'), paced),
    ...others.map((reads) => ({ reads, seconds: simulateReads(instance, reads) })),
  ].reduce((best, one) => (one.seconds < best.seconds ? one : best))
  return merge(instance, local, fastest.reads)
}

interface Order {
  readonly reads: readonly BucketRead[]
  /** Simulated. */
  readonly seconds: number
}

/**
 * Where senders are slower than all who take, they give each of those the same, and the fastest get less than they could take: each is
 * counted on with what it got of the order before.
 *
 * @returns that order and those that follow from it
 */
function slowed(
  instance: ReadInstance,
  sends: readonly Send[],
  first: readonly BucketRead[],
): Order[] {
  const orders: Order[] = []
  let reads = first
  for (let round = 0; ; round++) {
    const ended = simulateDevices(instance, reads)
    orders.push({ reads, seconds: Math.max(0, ...ended.values()) })
    if (round === SLOWED_ROUNDS) return orders
    const bytes = Map.groupBy(reads, ({ path }) => path?.to)
    const rates = instance.devices.map(({ bytesPerSecond }, device) => {
      const own = bytes.get(device) ?? []
      const sum = own.reduce((all, { bucket }) => all + bytesOf(instance, bucket), 0)
      const seconds = ended.get(device) ?? 0
      return sum > 0 && seconds > 0 ? sum / seconds : bytesPerSecond
    })
    reads = takers(instance, sends, rates)
  }
}

function bytesOf({ buckets }: ReadInstance, bucket: number): number {
  return (buckets[bucket] as OwnedBucket).bytes
}

function requireRates({ devices }: ReadInstance, { rank, devices: own }: NetworkRank): void {
  for (const index of own) {
    const rate = devices[index]?.bytesPerSecond ?? 0
    if (rate > 0 && Number.isFinite(rate)) continue
    const message = `network device ${index} of rank ${rank} has no rate`
    throw new CkptError('bad_request', message, { rank })
  }
}

/** Those of the owner's host, and of them the owner itself where it is one. */
function receiversOf(receivers: readonly NetworkRank[], owner: NetworkRank): number[] {
  const near = [...receivers.keys()].filter((index) => receivers[index]?.host === owner.host)
  const self = near.filter((index) => receivers[index]?.rank === owner.rank)
  return self.length > 0 ? self : near
}

interface Send {
  readonly bucket: number
  readonly bytes: number
  readonly from: number
  /** Of what its sender sends, the part before it, and before its middle. */
  readonly begin: number
  readonly middle: number
}

/** Each bucket over that device of its owner's which is done with it first. */
function senders({ devices, owners, buckets }: ReadInstance, remote: readonly number[]): Send[] {
  const turns = new Turns(devices.map(({ bytesPerSecond }) => bytesPerSecond))
  const sends = remote.map((bucket) => {
    const { owner, bytes } = buckets[bucket] as OwnedBucket
    const from = turns.take(devicesOf(owners[owner] as NetworkRank), bytes)
    return { bucket, bytes, from, until: turns.taken(from) }
  })
  return sends.map(({ until, ...send }) => {
    const all = turns.taken(send.from)
    return { ...send, begin: (until - send.bytes) / all, middle: (until - send.bytes / 2) / all }
  })
}

/** In this order, each by that device of the receivers which is done with it first at these rates, in bytes per second. */
function takers(
  { receivers }: ReadInstance,
  sends: readonly Send[],
  rates: readonly number[],
): BucketRead[] {
  const turns = new Turns(rates)
  const ranks = new Turns(receivers.map(() => 1))
  const byDevice = receiversByDevice(receivers)
  const any = [...byDevice.keys()]
  return sends.map(({ bucket, from, bytes }) => {
    const to = turns.take(any, bytes)
    return { bucket, receiver: ranks.take(byDevice.get(to) ?? [], bytes), path: { from, to } }
  })
}

function receiversByDevice(receivers: readonly NetworkRank[]): Map<number, number[]> {
  const byDevice = new Map<number, number[]>()
  for (const [receiver, { devices }] of receivers.entries()) {
    for (const device of devices) {
      byDevice.set(device, [...(byDevice.get(device) ?? []), receiver])
    }
  }
  if (byDevice.size > 0) return byDevice
  throw new CkptError('bad_request', 'no receiver has a network device')
}

/** One bucket of each owner's device after another, by the first rank of each of as many devices of receivers. */
function inTurns(
  { owners, receivers, buckets }: ReadInstance,
  remote: readonly number[],
): BucketRead[] {
  const firstDevice = (bucket: number) => {
    const { owner } = buckets[bucket] as OwnedBucket
    return devicesOf(owners[owner] as NetworkRank)[0] as number
  }
  const columns = [...Map.groupBy(remote, firstDevice).values()]
  const most = Math.max(0, ...columns.map(({ length }) => length))
  const order = Array.from({ length: most }, (_, i) => columns.flatMap((column) => column[i] ?? []))
  const firstRanks = new Map<number, number>()
  for (const [receiver, one] of receivers.entries()) {
    const [device] = one.devices
    if (device !== undefined && !firstRanks.has(device)) firstRanks.set(device, receiver)
  }
  const used = [...firstRanks].slice(0, columns.length)
  const busy = new Set<number>()
  let turn = 0
  return order.flat().map((bucket) => {
    const from = firstDevice(bucket)
    if (turn === used.length || busy.has(from)) {
      turn = 0
      busy.clear()
    }
    busy.add(from)
    const [to, receiver] = used[turn++] as [number, number]
    return { bucket, receiver, path: { from, to } }
  })
}

function devicesOf({ rank, devices }: NetworkRank): readonly number[] {
  if (devices.length > 0) return devices
  throw new CkptError('bad_request', `rank ${rank} has no network device`, { rank })
}

/** What is read without a network comes evenly among what is not: it takes turns in the same ring. */
function merge(
  instance: ReadInstance,
  local: readonly BucketRead[],
  remote: readonly BucketRead[],
): BucketRead[] {
  const placed = [local, remote].flatMap((reads) => {
    const total = reads.reduce((sum, { bucket }) => sum + bytesOf(instance, bucket), 0)
    let before = 0
    return reads.map((read) => {
      const bytes = bytesOf(instance, read.bucket)
      const middle = (before + bytes / 2) / Math.max(1, total)
      before += bytes
      return { read, middle }
    })
  })
  return placed.toSorted((a, b) => a.middle - b.middle).map(({ read }) => read)
}

/** Gives each piece to whoever is done with it first, after what it has been given before. */
class Turns {
  readonly #rates: readonly number[]
  readonly #taken: Float64Array

  constructor(rates: readonly number[]) {
    this.#rates = rates
    this.#taken = new Float64Array(rates.length)
  }

  taken(index: number): number {
    return this.#taken[index] as number
  }

  take(among: readonly number[], bytes: number): number {
    let [best, soonest] = [-1, Number.POSITIVE_INFINITY]
    for (const index of among) {
      const done = (this.taken(index) + bytes) / (this.#rates[index] as number)
      if (done < soonest) [best, soonest] = [index, done]
    }
    if (best < 0) throw new Error('nobody to take it')
    this.#taken[best] = this.taken(best) + bytes
    return best
  }
}
