import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { DEFAULT_RATES } from './cost.ts'
import {
  BYTES_PER_SECOND_MAX,
  BYTES_PER_SECOND_MIN,
  linkRate,
  medianOf,
  planRates,
  rateOf,
  type TimedBytes,
} from './rates.ts'

const linkBytesPerSecond = fc.double({ min: 1e7, max: 1e12, noNaN: true })
const bytes = fc.integer({ min: 2 ** 20, max: 2 ** 28 })
const anyTransfer = fc.record({
  bytes: fc.integer({ min: -1, max: 2 ** 40 }),
  seconds: fc.double(),
})

describe('the rate of a link', () => {
  test('is found from a single undisturbed transfer among slower ones, in whichever order', () => {
    const delays = fc.array(fc.tuple(bytes, fc.double({ min: 0, max: 10, noNaN: true })))
    fc.assert(
      fc.property(linkBytesPerSecond, bytes, delays, fc.nat(), (rate, good, disturbed, at) => {
        const transfers: TimedBytes[] = disturbed.map(([size, delay]) => ({
          bytes: size,
          seconds: size / rate + delay,
        }))
        transfers.splice(at % (transfers.length + 1), 0, { bytes: good, seconds: good / rate })
        const found = linkRate(transfers) as number
        expect(found / rate).toBeCloseTo(1, 9)
      }),
    )
  })

  test('lies within the bounds, whatever the clock says, or is not known', () => {
    fc.assert(
      fc.property(fc.array(anyTransfer), (transfers) => {
        const found = linkRate(transfers)
        const telling = transfers.some((one) => one.bytes > 0 && one.seconds > 0)
        expect(found !== null).toBe(telling)
        if (found === null) return
        expect(found).toBeGreaterThanOrEqual(BYTES_PER_SECOND_MIN)
        expect(found).toBeLessThanOrEqual(BYTES_PER_SECOND_MAX)
      }),
    )
    expect(rateOf({ bytes: 1, seconds: 0 })).toBeNull()
    expect(rateOf({ bytes: 1, seconds: Number.NaN })).toBeNull()
    expect(linkRate([])).toBeNull()
  })
})

describe('the median', () => {
  test('is not taken out of the range of the others by less than half of the values', () => {
    const value = fc.double({ noNaN: true, noDefaultInfinity: true })
    const lists = fc.array(value, { minLength: 1, maxLength: 9 })
    fc.assert(
      fc.property(lists, fc.array(value, { maxLength: 8 }), (good, wild) => {
        const few = wild.slice(0, good.length - 1)
        const median = medianOf([...few, ...good]) as number
        expect(median).toBeGreaterThanOrEqual(Math.min(...good))
        expect(median).toBeLessThanOrEqual(Math.max(...good))
        expect(medianOf([...good, ...few].toReversed())).toBe(median)
      }),
    )
    expect(medianOf([])).toBeNull()
    expect(medianOf([3, 1, 2])).toBe(2)
    expect(medianOf([4, 1])).toBe(2.5)
  })
})

describe('the rates of a plan', () => {
  const nothing = { broadcastBytesPerSecond: null, engines: [] }

  test('are the defaults where nothing is known', () => {
    const devices = { ...nothing, h2dBytesPerSecond: [null, null] }
    expect(planRates(devices)).toEqual(DEFAULT_RATES)
    expect(planRates({ ...devices, engines: [null] })).toEqual(DEFAULT_RATES)
  })

  test('are those of the slowest device, which may be one that nothing is known of', () => {
    const of = (...h2dBytesPerSecond: (number | null)[]) =>
      planRates({ ...nothing, h2dBytesPerSecond }).h2dBytesPerSecond
    expect(of(30e9, null, 20e9)).toBe(20e9)
    expect(of(2e12, null)).toBe(DEFAULT_RATES.h2dBytesPerSecond)
    expect(of(2e12)).toBe(2e12)
  })

  test('are those of the slowest engine in each respect', () => {
    const { bucketSeconds, tensorSeconds, reloadBytesPerSecond } = DEFAULT_RATES
    const slow = { bucketSeconds: 1, tensorSeconds: 0, reloadBytesPerSecond: 1e9 }
    const fast = { bucketSeconds: 0, tensorSeconds: 1e-6, reloadBytesPerSecond: 2e12 }
    const known = { h2dBytesPerSecond: [1e9], broadcastBytesPerSecond: 5e9 }
    const rest = { h2dBytesPerSecond: 1e9, broadcastBytesPerSecond: 5e9 }
    expect(planRates({ ...known, engines: [slow, fast] })).toEqual({
      ...rest,
      bucketSeconds: 1,
      tensorSeconds: 1e-6,
      reloadBytesPerSecond: 1e9,
    })
    const mixed = planRates({ ...known, engines: [fast, null] })
    expect(mixed).toMatchObject({ bucketSeconds, tensorSeconds })
    expect(mixed.reloadBytesPerSecond).toBeCloseTo(reloadBytesPerSecond)
  })
})
