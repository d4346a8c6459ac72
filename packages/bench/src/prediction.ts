import { join } from 'node:path'
import type { UpdateReport } from '@ckpt/core'
import { type Bench, type BenchContext, GIB, KIB, MIB, sizeName } from './bench.ts'
import { Calibration } from './calibration.ts'
import { layersOf } from './checkpoint.ts'
import { atMost, shown } from './claims.ts'
import { ClusterUpdates } from './cluster-updates.ts'
import { SHM } from './places.ts'
import { PlainCluster } from './plain-cluster.ts'
import { type Row, rowOf } from './row.ts'
import {
  layoutOfFiles,
  type OwnedLayout,
  simulateUpdate,
  type StageRates,
} from './simulated-update.ts'
import { type Versions, writePair } from './versions.ts'
import type { Workload } from './workloads.ts'

const DAEMONS = 4

interface Layout {
  readonly name: string
  /** Of the daemons, the engines and the processes that measure. */
  readonly env: Readonly<Record<string, string>>
  readonly ringBytes: number
  readonly bucketBytes: number
  /** Of a bucket: as many layers as fit, each a matrix of 1 MiB and a vector of 2 KiB. */
  readonly pieceBytes: number
}

const LAYER_BYTES = MIB + 2 * KIB

/**
 * With links far below what two cores can do for all devices and engines the stages do not take processors from each other. A link
 * makes up for a gap of 5 ms between two copies, so copies take many times that.
 */
const LAYOUTS: readonly Layout[] = [
  {
    name: 'links of 50 MB/s',
    env: { CKPT_HOST_COPY_BYTES_PER_SECOND: String(50e6) },
    ringBytes: 32 * MIB,
    bucketBytes: 8 * MIB,
    pieceBytes: 7 * LAYER_BYTES,
  },
  {
    name: 'no limit',
    env: {},
    ringBytes: 16 * MIB,
    bucketBytes: 4 * MIB,
    pieceBytes: 3 * LAYER_BYTES,
  },
]
/** Of what the plain stages move: less than any update that is predicted. */
const CALIBRATED_PIECES = 8
/** Of each daemon a bucket. */
const EMPTY: Workload = {
  name: 'empty buckets',
  tensors: Array.from({ length: 2 * DAEMONS }, (_, i) => {
    return { name: `layers.${i}.norm.weight`, dtype: 'BF16', shape: [1024] }
  }),
  model: false,
}
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
  readonly reports: UpdateReport[]
}

async function* layoutRows(
  { devices, sizes, dir, note }: BenchContext,
  { name: layout, env, ringBytes, bucketBytes, pieceBytes }: Layout,
): AsyncGenerator<Row> {
  await using stack = new AsyncDisposableStack()
  const ring = ['--ring-gib', String(ringBytes / GIB)]
  const flags = [...ring, '--bucket-mib', String(bucketBytes / MIB)]
  const own = join(dir, layout.replaceAll(/\W+/g, '-'))
  const updates = await ClusterUpdates.start(stack, devices, DAEMONS, own, flags, env)
  const empty = await writePair(stack, EMPTY, 1, SHM, DAEMONS)
  await updates.register(empty)
  const jobs: Job[] = []
  for (const bytes of sizes) {
    const name = `${DAEMONS} daemons, ${sizeName(bytes)}, ${layout}`
    const workload = { name, tensors: layersOf(bytes), model: false }
    const versions = await writePair(stack, workload, 1, SHM, DAEMONS)
    const owned = await layoutOfFiles(versions.present.files)
    await updates.register(versions)
    jobs.push({ name, versions, layout: owned, reports: [] })
  }
  const plain = await PlainCluster.start(stack, devices, DAEMONS, env)
  const calibrated = { bytes: CALIBRATED_PIECES * pieceBytes, pieceBytes, ringBytes }
  const calibration = new Calibration(plain, DAEMONS, calibrated)
  for (let round = -WARM_UPS; round < ROUNDS; round++) {
    await playRound({ updates, calibration, empty, jobs }, round >= 0)
  }
  note(`${layout}, measured beside the updates: ${ratesText(calibration.rates)}`)
  for (const job of jobs) yield await jobRow(updates, job, calibration.rates)
}

async function playRound(
  {
    updates,
    calibration,
    empty,
    jobs,
  }: {
    readonly updates: ClusterUpdates
    readonly calibration: Calibration
    readonly empty: Versions
    readonly jobs: readonly Job[]
  },
  counts: boolean,
): Promise<void> {
  if (counts) await calibration.time()
  const report = await updates.update(empty)
  if (counts) calibration.takeEmpty(await updates.trace(report))
  for (const { versions, reports } of jobs) {
    const told = await updates.update(versions)
    if (counts) reports.push(told)
  }
}

/** The last update of each is made again, so that every byte is looked at. */
async function jobRow(updates: ClusterUpdates, job: Job, rates: StageRates): Promise<Row> {
  const { name, versions, layout, reports } = job
  const [sizes] = reports
  if (sizes === undefined) throw new Error('no update was made')
  const { buckets, seconds: predicted } = simulateUpdate(layout, sizes, rates)
  if (buckets !== sizes.buckets)
    throw new Error(`${buckets} buckets are predicted, not ${sizes.buckets}`)
  const measured = reports.map(({ seconds }) => seconds.transfer)
  await updates.update(versions)
  const head = versions.head('prediction', name)
  const limitGbPerSecond = versions.bytes / predicted / 1e9
  const row = rowOf({ ...head, limitGbPerSecond }, measured, await updates.check(versions))
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
  ].join(', ')
}
