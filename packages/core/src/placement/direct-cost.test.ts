import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { DEFAULT_RATES } from '../plan/cost.ts'
import { directSeconds, ringSeconds } from './direct-cost.ts'

const GB = 1e9
const RATES = { ...DEFAULT_RATES, h2dBytesPerSecond: 50 * GB, broadcastBytesPerSecond: 200 * GB }
const JOB = { totalBytes: 16 * GB, tensorCount: 400 }

describe('a direct update', () => {
  test('is bounded by the slowest link', () => {
    const placedBytes = [2 * GB, 4 * GB]
    expect(directSeconds({ placedBytes, traffic: [] }, RATES)).toBeCloseTo(0.08)
    const traffic = [{ bytes: 10 * GB, bytesPerSecond: 25 * GB }]
    expect(directSeconds({ placedBytes, traffic }, RATES)).toBeCloseTo(0.4)
  })

  test('of eight slices is faster than the ring, of eight whole copies slower', () => {
    const ring = ringSeconds({ ...JOB, rankCount: 8 }, [], RATES)
    const slices = Array.from({ length: 8 }, () => 2 * GB)
    expect(directSeconds({ placedBytes: slices, traffic: [] }, RATES)).toBeLessThan(ring / 2)
    const copies = Array.from({ length: 8 }, () => 16 * GB)
    expect(directSeconds({ placedBytes: copies, traffic: [] }, RATES)).toBeGreaterThan(ring * 2)
  })

  test('of slices that hosts need of each other reads no more than the ring does', () => {
    const one = fc.record({
      bytes: fc.integer({ min: 0, max: 1e12 }),
      part: fc.double({ min: 0, max: 1, noNaN: true }),
    })
    fc.assert(
      fc.property(fc.array(one, { minLength: 1, maxLength: 8 }), (hosts) => {
        const bytesPerSecond = 12.5 * GB
        const needed = hosts.map(({ bytes, part }) => ({ bytes: bytes * part, bytesPerSecond }))
        const all = hosts.map(({ bytes }) => ({ bytes, bytesPerSecond }))
        const job = { ...JOB, totalBytes: 1, tensorCount: 1, rankCount: hosts.length }
        const direct = directSeconds({ placedBytes: [], traffic: needed }, RATES)
        expect(direct).toBeLessThanOrEqual(ringSeconds(job, all, RATES))
      }),
    )
  })
})
