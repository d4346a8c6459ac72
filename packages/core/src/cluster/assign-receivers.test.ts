import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { assignReceivers } from './assign-receivers.ts'
import type { BucketRead, NetworkRank, ReadInstance } from './receivers.ts'
import { simulateReads } from './simulate-reads.ts'

const GBIT = 1e9 / 8

/** Hosts whose devices are split evenly over their ranks, as `rdmaDevicesOf` does. */
const host = fc.record({
  ranks: fc.constantFrom(1, 2, 4, 8),
  share: fc.constantFrom(0.25, 0.5, 1, 2),
  gbits: fc.array(fc.constantFrom(25, 50, 100, 200, 400), { minLength: 16, maxLength: 16 }),
})
const instances = (fewest: number, most: number) =>
  fc
    .record({
      owners: fc.array(host, { minLength: 1, maxLength: 4 }),
      receivers: fc.array(host, { minLength: 1, maxLength: 2 }),
      both: fc.nat(3),
      sizes: fc.array(
        fc.record({ owner: fc.nat(31), bytes: fc.integer({ min: 1, max: 2 ** 28 }) }),
        {
          minLength: fewest,
          maxLength: most,
          size: 'max',
        },
      ),
      even: fc.boolean(),
    })
    .map(({ owners, receivers, both, sizes, even }): ReadInstance => {
      const devices: { bytesPerSecond: number }[] = []
      const ranks: NetworkRank[][] = []
      for (const [at, { ranks: count, share, gbits }] of [...owners, ...receivers].entries()) {
        const first = devices.length
        const each = Math.max(1, Math.round(count * share))
        devices.push(...gbits.slice(0, each).map((one) => ({ bytesPerSecond: one * GBIT })))
        const base = ranks.flat().length
        ranks.push(
          Array.from({ length: count }, (_, local) => ({
            rank: base + local,
            host: at,
            devices:
              each <= count
                ? [first + Math.floor((local * each) / count)]
                : Array.from(
                    { length: each / count },
                    (_, i) => first + (local * each) / count + i,
                  ),
          })),
        )
      }
      const have = ranks.slice(0, owners.length).flat()
      // some hosts have and want
      const also = both === 0 ? ranks.slice(0, 1).flat() : []
      return {
        devices,
        owners: have,
        receivers: [...also, ...ranks.slice(owners.length).flat()],
        buckets: sizes.map(({ owner, bytes }) => ({
          owner: owner % have.length,
          bytes: even ? 2 ** 27 : bytes,
        })),
      }
    })

const anyInstance = instances(1, 200)

/** checkpoint-engine 0.4.2's `_assign_receiver_ranks`: the first rank of each device, in turns over the devices of the owners. */
function turns({ owners, receivers, buckets }: ReadInstance): BucketRead[] {
  const byDevice = Map.groupBy(
    buckets.keys(),
    (bucket) => owners[buckets[bucket]!.owner]!.devices[0]!,
  )
  const columns = [...byDevice.values()]
  const most = Math.max(...columns.map(({ length }) => length))
  const flat = Array.from({ length: most }, (_, i) => columns.flatMap((column) => column[i] ?? []))
  const order = flat.flat()
  const takers = new Map<number, number>()
  for (const [index, { devices }] of receivers.entries()) {
    if (!takers.has(devices[0]!)) takers.set(devices[0]!, index)
  }
  const used = [...takers].slice(0, Math.min(takers.size, columns.length))
  const reads: BucketRead[] = []
  while (reads.length < order.length) {
    const busy = new Set<number>()
    for (const [to, receiver] of used) {
      const bucket = order[reads.length]
      if (bucket === undefined) break
      const from = owners[buckets[bucket]!.owner]!.devices[0]!
      if (busy.has(from)) break
      busy.add(from)
      reads.push({ bucket, receiver, path: { from, to } })
    }
  }
  return reads
}

/** Of what goes over the network: the busiest owner's devices, or all of the receivers'. */
function optimum(instance: ReadInstance, reads: readonly BucketRead[]): number {
  const { devices, owners, receivers, buckets } = instance
  const rateOf = (some: Iterable<number>) => {
    return [...new Set(some)].reduce((sum, device) => sum + devices[device]!.bytesPerSecond, 0)
  }
  const bytesOf = (some: readonly BucketRead[]) => {
    return some.reduce((sum, { bucket }) => sum + buckets[bucket]!.bytes, 0)
  }
  const remote = reads.filter(({ path }) => path !== null)
  const senders = Map.groupBy(remote, ({ bucket }) => `${owners[buckets[bucket]!.owner]!.devices}`)
  const sent = [...senders].map(([key, some]) => bytesOf(some) / rateOf(key.split(',').map(Number)))
  const taken = bytesOf(remote) / rateOf(receivers.flatMap((one) => one.devices))
  return Math.max(0, taken, ...sent)
}

function bound(instance: ReadInstance, reads: readonly BucketRead[]): number {
  const remote = reads.flatMap(({ path, bucket }) => (path === null ? [] : [{ path, bucket }]))
  const slowest = Math.min(...instance.devices.map(({ bytesPerSecond }) => bytesPerSecond))
  const largest = Math.max(0, ...remote.map(({ bucket }) => instance.buckets[bucket]!.bytes))
  return 1.05 * optimum(instance, reads) + largest / slowest
}

/** Where it goes wrong is printed, with the seed. */
const RUNS = { numRuns: 400 }

test('every bucket is read once, by a receiver, over devices of its owner and its receiver', () => {
  fc.assert(
    fc.property(anyInstance, (instance) => {
      const reads = assignReceivers(instance)
      const numbers = reads.map(({ bucket }) => bucket).toSorted((a, b) => a - b)
      expect(numbers).toEqual([...instance.buckets.keys()])
      for (const { bucket, receiver, path } of reads) {
        const owner = instance.owners[instance.buckets[bucket]!.owner]!
        const taker = instance.receivers[receiver]!
        if (path === null) {
          expect(taker.host).toBe(owner.host)
          continue
        }
        expect(instance.receivers.some(({ host: at }) => at === owner.host)).toBe(false)
        expect(owner.devices).toContain(path.from)
        expect(taker.devices).toContain(path.to)
      }
    }),
    RUNS,
  )
})

test.each([
  ['a few', 1, 200, RUNS],
  ['hundreds of', 300, 1024, { numRuns: 12 }],
] as const)(
  'of %s buckets it is never slower than turns, and near what no assignment can beat',
  (_, fewest, most, runs) => {
    fc.assert(
      fc.property(instances(fewest, most), (instance) => {
        const reads = assignReceivers(instance)
        const seconds = simulateReads(instance, reads)
        expect(seconds).toBeLessThanOrEqual(simulateReads(instance, turns(instance)) * (1 + 1e-9))
        expect(seconds).toBeLessThanOrEqual(bound(instance, reads))
        expect(seconds).toBeGreaterThanOrEqual(optimum(instance, reads) * (1 - 1e-9))
      }),
      runs,
    )
  },
  60_000,
)

const rank = (number: number, at: number, ...devices: number[]): NetworkRank => {
  return { rank: number, host: at, devices }
}
const rates = (...gbits: number[]) => gbits.map((one) => ({ bytesPerSecond: one * GBIT }))
const buckets = (count: number, owners = 1) => {
  return Array.from({ length: count }, (_, i) => ({ owner: i % owners, bytes: GBIT }))
}

test('one owner with one device gives all that it has, whoever takes it', () => {
  const instance = {
    devices: rates(100, 25, 25, 50),
    owners: [rank(0, 0, 0)],
    receivers: [rank(1, 1, 1, 2), rank(2, 1, 3)],
    buckets: buckets(40),
  }
  const reads = assignReceivers(instance)
  const taken = [1, 2, 3].map((device) => reads.filter(({ path }) => path?.to === device).length)
  expect(taken).toEqual([10, 10, 20])
  // 40 Gbit, of which the slowest may get the last one
  expect(simulateReads(instance, reads)).toBeCloseTo(0.4, 2)
})

test('where the owner is slower than all who take, the fastest are not counted on with what they could take', () => {
  const instance = {
    devices: rates(400, 50, 200, 100, 100, 25),
    owners: [rank(0, 0, 0)],
    receivers: [rank(1, 1, 1, 2), rank(2, 1, 3, 4), rank(3, 2, 5)],
    buckets: buckets(144),
  }
  // of 475 Gbit/s that they could take
  expect(simulateReads(instance, assignReceivers(instance))).toBeLessThan(1.02 * (144 / 400))
})

test('an owner that is a receiver reads its own, and ranks of its host what it has', () => {
  const owners = [rank(0, 0), rank(1, 0)]
  const own = { devices: [], owners, receivers: owners, buckets: buckets(6, 2) }
  for (const { bucket, receiver, path } of assignReceivers(own)) {
    expect([receiver, path]).toEqual([bucket % 2, null])
  }
  const beside = { ...own, receivers: [rank(2, 0), rank(3, 0)], buckets: buckets(6, 1) }
  const taken = assignReceivers(beside).map(({ receiver }) => receiver)
  expect(taken.toSorted()).toEqual([0, 0, 0, 1, 1, 1])
})

test('what cannot be read is an error', () => {
  const instance = { devices: rates(100), owners: [rank(0, 0, 0)], receivers: [rank(7, 1)] }
  const nobody = { ...instance, receivers: [], buckets: buckets(1) }
  expect(() => assignReceivers(nobody)).toThrow('there is no receiver')
  const offline = { ...instance, buckets: buckets(1) }
  expect(() => assignReceivers(offline)).toThrow('no receiver has a network device')
  const unheard = { ...offline, owners: [rank(3, 0)] }
  expect(() => assignReceivers(unheard)).toThrow('rank 3 has no network device')
  for (const gbits of [0, Number.NaN, Number.POSITIVE_INFINITY]) {
    const still = { ...offline, devices: rates(gbits) }
    expect(() => assignReceivers(still)).toThrow('network device 0 of rank 0 has no rate')
  }
  // another rank takes what one cannot
  const one = { ...offline, receivers: [rank(7, 1), rank(8, 2, 0)] }
  expect(assignReceivers(one)).toEqual([{ bucket: 0, receiver: 1, path: { from: 0, to: 0 } }])
  expect(assignReceivers({ ...instance, buckets: [] })).toEqual([])
})

test('ten thousand buckets of a thousand owners are assigned at once', () => {
  const owners = Array.from({ length: 1000 }, (_, i) => rank(i, i, i))
  const receivers = Array.from({ length: 64 }, (_, i) => rank(1000 + i, 1000 + i, 1000 + i))
  const devices = rates(...Array.from({ length: 1064 }, () => 400))
  const beginMs = performance.now()
  const reads = assignReceivers({ devices, owners, receivers, buckets: buckets(10_000, 1000) })
  expect(performance.now() - beginMs).toBeLessThan(1000)
  const most = Math.max(
    ...receivers.map((_, i) => reads.filter((one) => one.receiver === i).length),
  )
  expect(most).toBe(Math.ceil(10_000 / 64))
})
