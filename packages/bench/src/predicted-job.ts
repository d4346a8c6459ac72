import type { UpdateReport } from '@ckpt/core'
import { timelineOf, type UpdateTimeline } from './calibration.ts'
import { atMost, shown } from './claims.ts'
import type { ClusterUpdates } from './cluster-updates.ts'
import { type Row, rowOf } from './row.ts'
import { type OwnedLayout, simulateUpdate, type StageRates } from './simulated-update.ts'
import type { Versions } from './versions.ts'

/** Percent of what was measured. */
const APART_MOST = 15

/** Updates of one checkpoint, to be compared with the simulation. */
export interface PredictedJob {
  readonly name: string
  readonly versions: Versions
  readonly layout: OwnedLayout
  /** Seconds from the first copy until the last engine had all. */
  readonly made: { readonly report: UpdateReport; readonly seconds: number }[]
}

/** What tells the rates of the stages without the updates that are predicted. */
export interface RateSource {
  time(): Promise<void> | void
  takeUpdate(timeline: UpdateTimeline): void
  readonly rates: StageRates
}

export interface PredictedRounds {
  /** Whose rates a note tells. */
  readonly what: string
  readonly updates: ClusterUpdates
  readonly calibration: RateSource
  /** Another, small checkpoint: its updates are the calibration's. */
  readonly small: Versions
  readonly jobs: readonly PredictedJob[]
  /** Rounds, of which those do not count. */
  readonly warmUps: number
  readonly rounds: number
  /** Whether a prediction is to be right. */
  readonly claims: boolean
}

/** Each round has what the calibration times, an update of the small checkpoint and one of each job. */
export async function* predictedRows(
  all: PredictedRounds,
  note: (text: string) => void,
): AsyncGenerator<Row> {
  const { what, updates, calibration, jobs, warmUps, rounds, claims } = all
  for (let round = -warmUps; round < rounds; round++) await playRound(all, round >= 0)
  const { rates } = calibration
  note(`${what}, measured beside the updates: ${ratesText(rates)}`)
  for (const job of jobs) {
    note(`${job.name}: ${job.made.map(({ seconds }) => shown(seconds)).join(', ')} s`)
    yield await jobRow(updates, job, rates, claims)
  }
}

async function playRound(
  { updates, calibration, small, jobs }: PredictedRounds,
  counts: boolean,
): Promise<void> {
  if (counts) await calibration.time()
  const report = await updates.update(small)
  if (counts) calibration.takeUpdate(timelineOf(await updates.trace(report)))
  for (const { versions, made } of jobs) {
    const told = await updates.update(versions)
    const { totalSeconds } = timelineOf(await updates.trace(told))
    if (counts) made.push({ report: told, seconds: totalSeconds })
  }
}

/** The last update of each is made again, so that every byte is looked at. */
async function jobRow(
  updates: ClusterUpdates,
  job: PredictedJob,
  rates: StageRates,
  claims: boolean,
): Promise<Row> {
  const { name, versions, layout, made } = job
  const sizes = made[0]?.report
  if (sizes === undefined) throw new Error('no update was made')
  const { buckets, seconds: predicted } = simulateUpdate(layout, sizes, rates)
  if (buckets !== sizes.buckets)
    throw new Error(`${buckets} buckets are predicted, not ${sizes.buckets}`)
  const measured = made.map(({ seconds }) => seconds)
  await updates.update(versions)
  const head = versions.head('prediction', name)
  const limitGbPerSecond = versions.bytes / predicted / 1e9
  const row = rowOf({ ...head, limitGbPerSecond }, measured, await updates.check(versions))
  if (!claims) return row
  const apart = 100 * Math.abs(predicted / row.p50_s - 1)
  const range = `${shown(Math.min(...measured))} to ${shown(Math.max(...measured))}`
  const what = `${shown(predicted)} s predicted, ${shown(row.p50_s)} s measured (${range})`
  return { ...row, claims: [atMost(`${name}: ${what}: apart by`, apart, APART_MOST, '%')] }
}

function ratesText(rates: StageRates): string {
  const mb = (bytesPerSecond: number) =>
    bytesPerSecond === Infinity ? 'no limit' : `${Math.round(bytesPerSecond / 1e6)} MB/s`
  const ms = (seconds: number) => `${shown(seconds * 1000)} ms`
  const { h2dBytesPerSecond, broadcastBytesPerSecond, reloadBytesPerSecond } = rates
  return [
    `h2d ${mb(h2dBytesPerSecond)} a device`,
    `broadcasts ${mb(broadcastBytesPerSecond)} and ${ms(rates.broadcastSeconds)}`,
    `reload ${mb(reloadBytesPerSecond)} and ${ms(rates.bucketSeconds)} a bucket`,
    `engines open after ${ms(rates.openSeconds)}`,
  ].join(', ')
}
