import { afterEach, beforeEach, expect, test } from 'bun:test'
import { DEFAULT_RATES } from '@ckpt/core'
import { TestDir } from '../registry/testing/fixture.ts'
import type { RankInfo } from '../types.ts'
import { RateBook } from './rates.ts'

let dir: TestDir
beforeEach(() => {
  dir = new TestDir()
})
afterEach(() => dir.remove())

const ranks = (...uuids: string[]) => uuids.map((uuid) => ({ uuid }) as RankInfo)

test('what was measured is what a later book of the same directory plans with', async () => {
  const first = await RateBook.open(dir.path, 'cuda')
  expect(first.ratesOf(ranks('a', 'b'))).toEqual(DEFAULT_RATES)
  expect(first.h2d('a').from).toBe('default')
  await first.measured('a', 20e9)
  await first.measured('b', 10e9)
  const later = await RateBook.open(dir.path, 'cuda')
  expect(later.h2d('a')).toEqual({ bytes_per_second: 20e9, from: 'measured' })
  expect(later.ratesOf(ranks('a')).h2dBytesPerSecond).toBe(20e9)
  expect(later.ratesOf(ranks('a', 'b', 'unknown')).h2dBytesPerSecond).toBe(10e9)
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
