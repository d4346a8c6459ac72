import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { DEFAULT_RATES } from './cost.ts'
import {
  BYTES_PER_SECOND_MAX,
  BYTES_PER_SECOND_MIN,
  linkRate,
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

describe('the rates of a plan', () => {
  test('are the defaults where nothing is known', () => {
    expect(planRates({ h2dBytesPerSecond: [null, null] })).toEqual(DEFAULT_RATES)
  })

  test('are those of the slowest device, which may be one that nothing is known of', () => {
    expect(planRates({ h2dBytesPerSecond: [30e9, null, 20e9] }).h2dBytesPerSecond).toBe(20e9)
    const { h2dBytesPerSecond } = DEFAULT_RATES
    expect(planRates({ h2dBytesPerSecond: [2e12, null] })).toEqual(DEFAULT_RATES)
    expect(planRates({ h2dBytesPerSecond: [2e12] }).h2dBytesPerSecond).toBeGreaterThan(
      h2dBytesPerSecond,
    )
  })
})
