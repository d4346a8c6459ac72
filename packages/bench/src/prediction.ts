import { join } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import { type Bench, type BenchContext, GIB, MIB, sizeName } from './bench.ts'
import { Calibration, timelineOf } from './calibration.ts'
import { layersOf } from './checkpoint.ts'
import { shown } from './claims.ts'
import { ClusterUpdates } from './cluster-updates.ts'
import { SHM } from './places.ts'
import { jobRow, type PredictedJob, ratesText } from './predicted-job.ts'
import { LAYER_BYTES, LAYOUTS, type PredictedLayout } from './prediction-layouts.ts'
import { sharedDeviceRows } from './prediction-ranks.ts'
import { PlainCluster } from './plain-cluster.ts'
import type { Row } from './row.ts'
import { layoutOfFiles } from './simulated-update.ts'
import { type Versions, writePair } from './versions.ts'

const DAEMONS = 4

const WARM_UPS = 1
const ROUNDS = 5

/**
 * Updates and what the simulation makes of the rates of their stages, which are measured between them: on the host library of
 * several daemons with an engine each, on CUDA of one daemon whose ranks share a device.
 */
export const prediction: Bench = {
  name: 'prediction',
  onRequest: true,
  bytesLeast: 64 * MIB,
  async *rows(context) {
    const { library } = selectDevices(context.devices, null)
    if (library.kind === 'cuda') yield* sharedDeviceRows(context)
    else for (const layout of LAYOUTS) yield* layoutRows(context, layout)
  },
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
  const jobs: PredictedJob[] = []
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
    readonly jobs: readonly PredictedJob[]
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
