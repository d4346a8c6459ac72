import { assert } from '../checkpoint/assert.ts'
import { DEFAULT_RATES, type EngineRates } from './cost.ts'
import { clamp, medianOf } from './rates.ts'

/** The buckets that one engine took in one update; `seconds`: from the list until its reply. */
export interface TakenBuckets {
  readonly seconds: ArrayLike<number>
  readonly tensors: ArrayLike<number>
  readonly bytes: ArrayLike<number>
}

/** Fewer buckets tell too little. */
const BUCKETS_MIN = 8
/** More of them, evenly chosen, tell no more. */
const BUCKETS_MAX = 512
/** No reply comes so soon: a clock was wrong. */
const SECONDS_MIN = 1e-6
/** How often slower, or faster, in each respect an engine can be than the one of the defaults. */
const FACTOR_MAX = 1000
/** Residuals below this part of a bucket's usual time all count the same. */
const RESIDUAL_LEAST = 0.02
/** Weight of what is assumed of a part, beside what the buckets tell of it. */
const PRIOR_WEIGHT = 0.002
const REWEIGHTINGS = 10
/** Contents that are much alike take many. */
const SWEEPS_MAX = 500
const CHANGE_LEAST = 1e-7
const PARTS = 3

/**
 * What a bucket, a tensor and a byte cost this engine; null: the buckets tell too little.
 *
 * A bucket's time is a sum of these three, so they follow from buckets with different contents by
 * regression. It minimises absolute deviations (by iterated reweighting), because single buckets
 * are late by any amount when an interpreter collects its garbage, and squares would follow those.
 * Where contents do not differ, they cannot tell the three apart: then the assumption decides that
 * the engine is as many times slower (or faster) than {@link DEFAULT_RATES} in all three.
 */
export function engineRates(taken: TakenBuckets): EngineRates | null {
  const rows = rowsOf(taken)
  const usual = medianOf(rows.map(({ seconds }) => seconds))
  const assumed = medianOf(rows.map(({ parts }) => sum(parts)))
  if (usual === null || assumed === null || !(usual >= SECONDS_MIN)) return null
  const scale = usual / assumed
  const scaled = rows.map(({ seconds, parts }) => ({
    seconds: seconds / usual,
    parts: parts.map((part) => (part * scale) / usual),
  }))
  const [bucket, tensor, byte] = fit(scaled, scale).map((factor) => factor * scale)
  return {
    bucketSeconds: DEFAULT_RATES.bucketSeconds * (bucket as number),
    tensorSeconds: DEFAULT_RATES.tensorSeconds * (tensor as number),
    reloadBytesPerSecond: DEFAULT_RATES.reloadBytesPerSecond / (byte as number),
  }
}

/** A bucket's time, and what it would be by the defaults: of the bucket, its tensors, its bytes. */
interface Row {
  readonly seconds: number
  readonly parts: readonly number[]
}

function rowsOf({ seconds, tensors, bytes }: TakenBuckets): Row[] {
  assert(tensors.length === seconds.length && bytes.length === seconds.length, 'one of each')
  if (seconds.length < BUCKETS_MIN) return []
  const count = Math.min(seconds.length, BUCKETS_MAX)
  return Array.from({ length: count }, (_, i) => {
    const bucket = Math.floor((i * seconds.length) / count)
    const { bucketSeconds, tensorSeconds, reloadBytesPerSecond } = DEFAULT_RATES
    const parts = [
      bucketSeconds,
      (tensors[bucket] as number) * tensorSeconds,
      (bytes[bucket] as number) / reloadBytesPerSecond,
    ]
    return { seconds: seconds[bucket] as number, parts }
  })
}

/** Factors of the parts, 1 being assumed. */
function fit(rows: readonly Row[], scale: number): number[] {
  let factors: number[] = Array.from({ length: PARTS }, () => 1)
  for (let round = 0; round < REWEIGHTINGS; round++) {
    const weights = rows.map(({ seconds, parts }) => {
      const residual = seconds - sum(parts.map((part, j) => part * (factors[j] as number)))
      return 1 / Math.max(Math.abs(residual), RESIDUAL_LEAST)
    })
    factors = solve(rows, weights, scale)
  }
  return factors
}

/** Least squares with weights, each factor within its bounds: coordinate descent on a convex sum. */
function solve(rows: readonly Row[], weights: readonly number[], scale: number): number[] {
  const least = 1 / FACTOR_MAX / scale
  const most = FACTOR_MAX / scale
  const inner = (a: (row: Row) => number, b: (row: Row) => number) =>
    rows.reduce((total, row, i) => total + (weights[i] as number) * a(row) * b(row), 0)
  const part = (j: number) => (row: Row) => row.parts[j] as number
  const indices = [...Array(PARTS).keys()]
  const squares = indices.map((j) => indices.map((k) => inner(part(j), part(k))))
  const targets = indices.map((j) => inner(part(j), (row) => row.seconds))
  const factors = indices.map(() => clamp(1, least, most))
  let change = Number.POSITIVE_INFINITY
  for (let sweep = 0; sweep < SWEEPS_MAX && change > CHANGE_LEAST; sweep++) {
    change = 0
    for (const j of indices) {
      const row = squares[j] as number[]
      // tensors without bytes tell nothing of bytes
      if (row[j] === 0) continue
      const others = sum(row.map((square, k) => (k === j ? 0 : square * (factors[k] as number))))
      const prior = PRIOR_WEIGHT * (row[j] as number)
      const wanted = ((targets[j] as number) - others + prior) / ((row[j] as number) + prior)
      const next = clamp(wanted, least, most)
      change = Math.max(change, Math.abs(next - (factors[j] as number)))
      factors[j] = next
    }
  }
  return factors
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
