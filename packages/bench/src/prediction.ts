import { join } from 'node:path'
import type { UpdateReport } from '@ckpt/core'
import { type Bench, type BenchContext, GIB, MIB, sizeName } from './bench.ts'
import { Calibration, timelineOf } from './calibration.ts'
import { layersOf } from './checkpoint.ts'
import { atMost, shown } from './claims.ts'
import { ClusterUpdates } from './cluster-updates.ts'
import { SHM } from './places.ts'
import { LAYER_BYTES, LAYOUTS, type PredictedLayout } from './prediction-layouts.ts'
import { PlainCluster } from './plain-cluster.ts'
import { type Row, rowOf } from './row.ts'
import {
  layoutOfFiles,
  type OwnedLayout,
  simulateUpdate,
  type StageRates,
} from './simulated-update.ts'
import { type Versions, writePair } from './versions.ts'

const DAEMONS = 4

const WARM_UPS = 1
const ROUNDS = 5
/** Percent of what was measured. */
const APART_MOST = 15

/**
 * Updates of several daemons with an engine each, and what the simulation makes of the rates of their stages, which are measured between them by
 * processes that do nothing else.
 */
export const prediction: Bench = {
  name: 'prediction',
  onRequest: true,
  bytesLeast: 64 * MIB,
  async *rows(context) {
    for (const layout of LAYOUTS) yield* layoutRows(context, layout)
  },
}

/** Updates of one checkpoint. */
interface Job {
  readonly name: string
  readonly versions: Versions
  readonly layout: OwnedLayout
  readonly made: { readonly report: UpdateReport; readonly seconds: number }[]
}

async function* layoutRows(
  { devices, sizes, dir, note }: BenchContext,
  layout: PredictedLayout,
): AsyncGenerator<Row> {
  const { env, ringBytes, bucketBytes, layersPerPiece, pieces, calibratedBuckets } = layout
  await using stack = new AsyncDisposableStack()
  const ring = ['--ring-gib', String(ringBytes / GIB)]
  const flags = [...ring, '--bucket-mib', String(bucketBytes / MIB)]
  const own = join(dir, layout.name.replaceAll(/\W+/g, '-'))
  const updates = await ClusterUpdates.start(stack, devices, DAEMONS, own, flags, env)
  // each daemon has whole buckets of it
  const layers = DAEMONS * calibratedBuckets * layersPerPiece
  const known = { name: 'calibrated', tensors: layersOf(layers * MIB), model: false }
  const small = await writePair(stack, known, 1, SHM, DAEMONS)
  await updates.register(small)
  const jobs: Job[] = []
  for (const bytes of sizes) {
    const name = `${DAEMONS} daemons, ${sizeName(bytes)}, ${layout.name}`
    const workload = { name, tensors: layersOf(bytes), model: false }
    const versions = await writePair(stack, workload, 1, SHM, DAEMONS)
    const owned = await layoutOfFiles(versions.present.files)
    await updates.register(versions)
    jobs.push({ name, versions, layout: owned, made: [] })
  }
  const plain = await PlainCluster.start(stack, devices, DAEMONS, env)
  const pieceBytes = layersPerPiece * LAYER_BYTES
  const calibrated = { bytes: pieces * pieceBytes, pieceBytes, ringBytes }
  const calibration = new Calibration(plain, DAEMONS, calibrated)
  for (let round = -WARM_UPS; round < ROUNDS; round++) {
    await playRound({ updates, calibration, small, jobs }, round >= 0)
  }
  note(`${layout.name}, measured beside the updates: ${ratesText(calibration.rates)}`)
  for (const job of jobs) {
    note(`${job.name}: ${job.made.map(({ seconds }) => shown(seconds)).join(', ')} s`)
    yield await jobRow(updates, job, calibration.rates, layout.claims)
  }
}

async function playRound(
  {
    updates,
    calibration,
    small,
    jobs,
  }: {
    readonly updates: ClusterUpdates
    readonly calibration: Calibration
    readonly small: Versions
    readonly jobs: readonly Job[]
  },
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
  job: Job,
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
  const mb = (bytesPerSecond: number) => `${Math.round(bytesPerSecond / 1e6)} MB/s`
  const ms = (seconds: number) => `${shown(seconds * 1000)} ms`
  const { h2dBytesPerSecond, broadcastBytesPerSecond, reloadBytesPerSecond } = rates
  return [
    `h2d ${mb(h2dBytesPerSecond)} each`,
    `broadcasts ${mb(broadcastBytesPerSecond)} and ${ms(rates.broadcastSeconds)}`,
    `reload ${mb(reloadBytesPerSecond)} and ${ms(rates.bucketSeconds)} a bucket`,
    `engines open after ${ms(rates.openSeconds)}`,
  ].join(', ')
}
