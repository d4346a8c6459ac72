import { expect, test } from 'bun:test'
import { DEFAULT_RATES } from '../plan/cost.ts'
import { predictSlices } from './predict-slices.ts'

const GB = 1e9
const RATES = { ...DEFAULT_RATES, h2dBytesPerSecond: 50 * GB, broadcastBytesPerSecond: 200 * GB }
const MODEL = { totalBytes: 640 * GB, tensorCount: 50_000, networkBytesPerSecond: 400 * GB }

test('one engine of a host has a slice of everything over each link, and reads nothing', () => {
  const one = { ...MODEL, hosts: 1, devicesPerHost: 8, tensorParallel: 8 }
  expect(predictSlices(one, RATES)).toEqual({
    seconds: 1.6,
    placedBytes: 80 * GB,
    readBytes: 0,
    boundBy: 'h2d',
    isChosen: true,
  })
})

test('an engine of two hosts needs a half on each, of which the network brings what they do not hold', () => {
  const two = { ...MODEL, hosts: 2, devicesPerHost: 8, tensorParallel: 16 }
  expect(predictSlices(two, RATES)).toMatchObject({ seconds: 0.8, readBytes: 160 * GB })
  const slow = { ...two, networkBytesPerSecond: 10 * GB }
  // through the ring twice as much comes to each
  expect(predictSlices(slow, RATES)).toMatchObject({
    seconds: 16,
    boundBy: 'network',
    isChosen: true,
  })
})

test('engines of one host take from each other where that is faster than the links', () => {
  const four = { ...MODEL, hosts: 1, devicesPerHost: 8, tensorParallel: 2 }
  expect(predictSlices(four, RATES)).toMatchObject({ placedBytes: 80 * GB })
  const alone = { ...RATES, broadcastBytesPerSecond: 50 * GB }
  expect(predictSlices(four, alone)).toMatchObject({ placedBytes: 320 * GB, seconds: 6.4 })
})

test('replicas on hosts of their own are better broadcast to', () => {
  const apart = { ...MODEL, hosts: 8, devicesPerHost: 1, tensorParallel: 1 }
  expect(predictSlices(apart, RATES)).toMatchObject({ seconds: 12.8, isChosen: false })
})
