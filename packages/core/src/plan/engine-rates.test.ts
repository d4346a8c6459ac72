import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { DEFAULT_RATES, type EngineRates } from './cost.ts'
import { engineRates, type TakenBuckets } from './engine-rates.ts'

const MIB = 2 ** 20

interface Content {
  readonly tensors: number
  readonly bytes: number
}

function timeOf(rates: EngineRates, { tensors, bytes }: Content): number {
  const { bucketSeconds, tensorSeconds, reloadBytesPerSecond } = rates
  return bucketSeconds + tensors * tensorSeconds + bytes / reloadBytesPerSecond
}

function taken(contents: readonly Content[], seconds: (content: Content, i: number) => number) {
  return {
    seconds: contents.map(seconds),
    tensors: contents.map(({ tensors }) => tensors),
    bytes: contents.map(({ bytes }) => bytes),
  } satisfies TakenBuckets
}

const content = fc.record({
  tensors: fc.integer({ min: 1, max: 200 }),
  bytes: fc.integer({ min: MIB, max: 256 * MIB }),
})
const contents = fc.array(content, { minLength: 40, maxLength: 100 })
const engine: fc.Arbitrary<EngineRates> = fc.record({
  bucketSeconds: fc.double({ min: 20e-6, max: 5e-3, noNaN: true }),
  tensorSeconds: fc.double({ min: 2e-6, max: 500e-6, noNaN: true }),
  reloadBytesPerSecond: fc.double({ min: 2e9, max: 3000e9, noNaN: true }),
})

/** The part by which the two differ in what all of the buckets take. */
function apart(found: EngineRates, real: EngineRates, buckets: readonly Content[]): number {
  const total = (rates: EngineRates) =>
    buckets.reduce((seconds, one) => seconds + timeOf(rates, one), 0)
  return Math.abs(total(found) / total(real) - 1)
}

const usual = { tensors: 100, bytes: 128 * MIB }

describe('the rates of an engine', () => {
  test('predict its buckets, also when a tenth of those it took were late by any amount', () => {
    const late = fc.double({ min: 0, max: 2, noNaN: true })
    fc.assert(
      fc.property(engine, contents, late, (real, buckets, delay) => {
        const seen = taken(buckets, (one, i) => timeOf(real, one) + (i % 10 === 3 ? delay : 0))
        expect(apart(engineRates(seen) as EngineRates, real, buckets)).toBeLessThan(0.1)
      }),
      { numRuns: 200 },
    )
  })

  test('tell what a bucket, a tensor and a byte cost where each of them counts', () => {
    const real = { bucketSeconds: 2e-3, tensorSeconds: 80e-6, reloadBytesPerSecond: 30e9 }
    const buckets = Array.from({ length: 60 }, (_, i) => ({
      tensors: 1 + ((i * 7) % 60),
      bytes: (1 + ((i * 13) % 60)) * 4 * MIB,
    }))
    const jitter = (i: number) => 1 + 0.05 * Math.sin(i * 12.9898)
    const found = engineRates(taken(buckets, (one, i) => timeOf(real, one) * jitter(i)))
    for (const key of ['bucketSeconds', 'tensorSeconds', 'reloadBytesPerSecond'] as const) {
      const ratio = (found as EngineRates)[key] / real[key]
      expect(ratio).toBeGreaterThan(0.75)
      expect(ratio).toBeLessThan(1.33)
    }
  })

  test('are as many times the defaults as the time is, where all buckets are alike', () => {
    for (const factor of [0.1, 1, 7, 100]) {
      const buckets = Array.from({ length: 20 }, () => usual)
      const seen = taken(buckets, (one) => factor * timeOf(DEFAULT_RATES, one))
      const found = engineRates(seen) as EngineRates
      expect(found.bucketSeconds / DEFAULT_RATES.bucketSeconds).toBeCloseTo(factor, 5)
      expect(found.tensorSeconds / DEFAULT_RATES.tensorSeconds).toBeCloseTo(factor, 5)
      expect(DEFAULT_RATES.reloadBytesPerSecond / found.reloadBytesPerSecond).toBeCloseTo(factor, 5)
    }
  })

  test('are not made up from noise, where the contents of the buckets hardly differ', () => {
    const buckets = Array.from({ length: 30 }, (_, i) => ({
      tensors: 100 + (i % 3),
      bytes: (128 + ((i * 7) % 3)) * MIB,
    }))
    const jitter = (i: number) => 1 + 0.05 * Math.sin(i * 78.233)
    const seen = taken(buckets, (one, i) => 3 * timeOf(DEFAULT_RATES, one) * jitter(i))
    const found = engineRates(seen) as EngineRates
    const factors = [
      found.bucketSeconds / DEFAULT_RATES.bucketSeconds,
      found.tensorSeconds / DEFAULT_RATES.tensorSeconds,
      DEFAULT_RATES.reloadBytesPerSecond / found.reloadBytesPerSecond,
    ]
    for (const factor of factors) {
      expect(factor).toBeGreaterThan(3 / 2)
      expect(factor).toBeLessThan(3 * 2)
    }
  })

  test('lie within a thousand times the defaults, whatever was seen', () => {
    const power = fc.integer({ min: -70, max: 60 }).map((tenths) => 10 ** (tenths / 10))
    const seconds = fc.oneof(power, fc.constant(0))
    const empty = fc.record({ tensors: fc.nat(3), bytes: fc.constant(0) })
    const lists = [content, empty].map((one) =>
      fc.array(fc.tuple(one, seconds), { maxLength: 40, size: 'max' }),
    )
    fc.assert(
      fc.property(fc.oneof(...lists), (buckets) => {
        const seen = taken(
          buckets.map(([one]) => one),
          (_, i) => buckets[i]![1],
        )
        const found = engineRates(seen)
        if (buckets.length < 8) expect(found).toBeNull()
        if (found === null) return
        const factors = [
          found.bucketSeconds / DEFAULT_RATES.bucketSeconds,
          found.tensorSeconds / DEFAULT_RATES.tensorSeconds,
          found.reloadBytesPerSecond / DEFAULT_RATES.reloadBytesPerSecond,
        ]
        for (const factor of factors) {
          expect(factor).toBeGreaterThan(0.999e-3)
          expect(factor).toBeLessThan(1.001e3)
        }
      }),
    )
  })

  test('of an update with very many buckets take no time worth mentioning', () => {
    const buckets = Array.from({ length: 100_000 }, (_, i) => ({ tensors: i % 9, bytes: MIB }))
    const begin = performance.now()
    expect(engineRates(taken(buckets, (one) => timeOf(DEFAULT_RATES, one)))).not.toBeNull()
    expect(performance.now() - begin).toBeLessThan(500)
  })
})
