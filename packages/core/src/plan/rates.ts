import { assert } from '../checkpoint/assert.ts'
import { type CostRates, DEFAULT_RATES, type EngineRates } from './cost.ts'

/** No link is slower or faster: what lies outside is an error of a clock, not a rate. */
export const BYTES_PER_SECOND_MIN = 1e6
export const BYTES_PER_SECOND_MAX = 1e13

/** A transfer that was timed. */
export interface TimedBytes {
  readonly bytes: number
  readonly seconds: number
}

/**
 * The rate of an undisturbed link, from transfers of the same kind; null: they tell nothing.
 *
 * It is the best of them: whatever else the machine does can only make a transfer slower, so the
 * fastest is the one nearest to what the link can do.
 */
export function linkRate(transfers: readonly TimedBytes[]): number | null {
  const rates = transfers.flatMap((one) => rateOf(one) ?? [])
  return rates.length === 0 ? null : Math.max(...rates)
}

/** Bytes per second within the bounds; null: no time has passed, or nothing was moved. */
export function rateOf({ bytes, seconds }: TimedBytes): number | null {
  if (!(bytes > 0 && seconds > 0)) return null
  return clamp(bytes / seconds, BYTES_PER_SECOND_MIN, BYTES_PER_SECOND_MAX)
}

export function clamp(value: number, least: number, most: number): number {
  return Math.min(most, Math.max(least, value))
}

/**
 * The middle one of them; of an even number the mean of the middle two; null: there are none. Less
 * than half of the values, wherever they lie, cannot take it out of the range of the others.
 */
export function medianOf(values: readonly number[]): number | null {
  if (values.length === 0) return null
  const sorted = values.toSorted((a, b) => a - b)
  const high = sorted[values.length >> 1] as number
  const low = sorted[(values.length - 1) >> 1] as number
  // the sum of the two may be larger than any number
  return low + (high - low) / 2
}

/** What is known of those that take part in an update; null: nothing. */
export interface KnownRates {
  /** Of each device. */
  readonly h2dBytesPerSecond: readonly (number | null)[]
  /** Among all of them. */
  readonly broadcastBytesPerSecond: number | null
  readonly engines: readonly (EngineRates | null)[]
}

/**
 * What an update is planned with: of several devices or engines the slowest, since a plan is the
 * same for all. Where nothing is known it is {@link DEFAULT_RATES}.
 */
export function planRates(known: KnownRates): CostRates {
  assert(known.h2dBytesPerSecond.length > 0, 'an update has at least one device')
  const h2d = known.h2dBytesPerSecond.map((rate) => rate ?? DEFAULT_RATES.h2dBytesPerSecond)
  const engines = known.engines.length === 0 ? [DEFAULT_RATES] : known.engines
  const slowest = (of: (engine: EngineRates) => number) =>
    Math.max(...engines.map((engine) => of(engine ?? DEFAULT_RATES)))
  const reload = engines.map((engine) => (engine ?? DEFAULT_RATES).reloadBytesPerSecond)
  return {
    h2dBytesPerSecond: Math.min(...h2d),
    broadcastBytesPerSecond: known.broadcastBytesPerSecond ?? DEFAULT_RATES.broadcastBytesPerSecond,
    bucketSeconds: slowest((engine) => engine.bucketSeconds),
    tensorSeconds: slowest((engine) => engine.tensorSeconds),
    reloadBytesPerSecond: Math.min(...reload),
  }
}
