import { afterEach, beforeEach, expect, test } from 'bun:test'
import { DEFAULT_RATES, engineRates, type TakenBuckets } from '@ckpt/core'
import { TestDir } from '../registry/testing/fixture.ts'
import type { RankInfo } from '../types.ts'
import { RateBook, type UpdateTold } from './rates.ts'

let dir: TestDir
beforeEach(() => {
  dir = new TestDir()
})
afterEach(() => dir.remove())

const ranks = (...uuids: string[]) => uuids.map((uuid) => ({ uuid }) as RankInfo)

test('what was measured is what a later book of the same directory plans with', async () => {
  const first = await RateBook.open(dir.path, 'cuda')
  expect(first.ratesOf(ranks('a', 'b'), [])).toEqual(DEFAULT_RATES)
  expect(first.h2d('a').from).toBe('default')
  await first.measured('a', 20e9)
  await first.measured('b', 10e9)
  const later = await RateBook.open(dir.path, 'cuda')
  expect(later.h2d('a')).toEqual({ bytes_per_second: 20e9, from: 'measured' })
  expect(later.ratesOf(ranks('a'), []).h2dBytesPerSecond).toBe(20e9)
  expect(later.ratesOf(ranks('a', 'b', 'unknown'), null).h2dBytesPerSecond).toBe(10e9)
})

test('a device is one of its library', async () => {
  const host = await RateBook.open(dir.path, 'host')
  await host.measured('a', 20e9)
  const cuda = await RateBook.open(dir.path, 'cuda')
  expect(cuda.h2dBytesPerSecond('a')).toBeNull()
  await cuda.measured('a', 50e9)
  const later = await RateBook.open(dir.path, 'host')
  expect(later.h2dBytesPerSecond('a')).toBe(20e9)
})

test('the devices of long ago are forgotten', async () => {
  const book = await RateBook.open(dir.path, 'host')
  for (let i = 0; i < 65; i++) await book.measured(`${i}`, 20e9)
  expect(book.h2dBytesPerSecond('0')).toBeNull()
  expect(book.h2dBytesPerSecond('1')).toBe(20e9)
})

const NONE = { bytes: 0, seconds: 0 }
const GIB = 2 ** 30

/** Buckets of an engine that is so many times slower than is assumed. */
function slow(factor: number): TakenBuckets {
  const tensors = Array.from({ length: 20 }, (_, i) => 1 + i)
  const { bucketSeconds, tensorSeconds } = DEFAULT_RATES
  const seconds = tensors.map((count) => factor * (bucketSeconds + count * tensorSeconds))
  return { tensors, seconds, bytes: tensors.map(() => 0) }
}

const told = (change: Partial<UpdateTold>): UpdateTold => ({
  ranks: ranks('a', 'b'),
  broadcast: NONE,
  engines: [],
  ...change,
})

test('a broadcast is learnt of the ranks that made it, and its median counts, also later', async () => {
  const book = await RateBook.open(dir.path, 'cuda')
  for (const seconds of [1, 1, 1000, 1e-6, 1]) {
    await book.learn(told({ broadcast: { bytes: 8 * GIB, seconds } }))
  }
  // one rank, and next to nothing
  await book.learn(told({ ranks: ranks('a'), broadcast: { bytes: 8 * GIB, seconds: 9 } }))
  for (let i = 0; i < 3; i++) {
    await book.learn(told({ broadcast: { bytes: 2 ** 20, seconds: 9 } }))
  }
  const later = await RateBook.open(dir.path, 'cuda')
  expect(later.broadcast(ranks('a', 'b'))).toEqual({ bytes_per_second: 8 * GIB, from: 'learnt' })
  expect(later.ratesOf(ranks('a', 'b'), []).broadcastBytesPerSecond).toBe(8 * GIB)
  for (const others of [ranks('a'), ranks('a', 'b', 'c'), ranks('b', 'a')]) {
    expect(later.broadcast(others).from).toBe('default')
  }
  expect((await RateBook.open(dir.path, 'host')).broadcast(ranks('a', 'b')).from).toBe('default')
})

test('only the last five updates count', async () => {
  const book = await RateBook.open(dir.path, 'cuda')
  const rate = async (seconds: number) => {
    await book.learn(told({ broadcast: { bytes: GIB, seconds } }))
    return book.broadcast(ranks('a', 'b')).bytes_per_second
  }
  for (let i = 0; i < 5; i++) expect(await rate(1)).toBe(GIB)
  for (let i = 0; i < 2; i++) expect(await rate(2)).toBe(GIB)
  expect(await rate(2)).toBe(GIB / 2)
})

test('an engine is learnt by its key; where nobody knows which comes, it is the last one', async () => {
  const book = await RateBook.open(dir.path, 'cuda')
  const learn = (key: string, factor: number) =>
    book.learn(told({ engines: [{ key, buckets: slow(factor) }] }))
  expect(book.engine('fast').from).toBe('default')
  await learn('slow', 10)
  await learn('fast', 0.5)
  const later = await RateBook.open(dir.path, 'cuda')
  const seconds = (engines: string[] | null) => later.ratesOf(ranks('a'), engines).bucketSeconds
  const of = (factor: number) => engineRates(slow(factor))?.bucketSeconds as number
  expect(later.engine('slow')).toMatchObject({ bucket_s: of(10), from: 'learnt' })
  expect(seconds(['slow'])).toBe(of(10))
  expect(seconds(['fast', 'slow'])).toBe(of(10))
  expect(seconds(['fast'])).toBe(of(0.5))
  expect(seconds(['fast', 'unknown'])).toBe(DEFAULT_RATES.bucketSeconds)
  expect(seconds(null)).toBe(of(0.5))
  expect(seconds([])).toBe(DEFAULT_RATES.bucketSeconds)
})

test('an engine that took few buckets is not learnt', async () => {
  const book = await RateBook.open(dir.path, 'cuda')
  const few = { seconds: [1, 1], tensors: [1, 2], bytes: [1, 2] }
  await book.learn(told({ engines: [{ key: 'e', buckets: few }] }))
  expect(book.engine('e').from).toBe('default')
})
