import { assert } from '../checkpoint/assert.ts'
import { type CostRates, DEFAULT_RATES } from './cost.ts'

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

/** What is known of those that take part in an update; null: nothing. */
export interface KnownRates {
  /** Of each device. */
  readonly h2dBytesPerSecond: readonly (number | null)[]
}

/**
 * What an update is planned with: of several devices the slowest, since a plan is the same for
 * all. Where nothing is known it is {@link DEFAULT_RATES}.
 */
export function planRates(known: KnownRates): CostRates {
  assert(known.h2dBytesPerSecond.length > 0, 'an update has at least one device')
  const h2d = known.h2dBytesPerSecond.map((rate) => rate ?? DEFAULT_RATES.h2dBytesPerSecond)
  return { ...DEFAULT_RATES, h2dBytesPerSecond: Math.min(...h2d) }
}
