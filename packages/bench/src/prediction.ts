import { join } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import { type Bench, type BenchContext, GIB, MIB, sizeName } from './bench.ts'
import { Calibration } from './calibration.ts'
import { layersOf } from './checkpoint.ts'
import { ClusterUpdates } from './cluster-updates.ts'
import { SHM } from './places.ts'
import { type PredictedJob, predictedRows } from './predicted-job.ts'
import { LAYER_BYTES, LAYOUTS, type PredictedLayout } from './prediction-layouts.ts'
import { sharedDeviceRows } from './prediction-ranks.ts'
import { PlainCluster } from './plain-cluster.ts'
import type { Row } from './row.ts'
import { layoutOfFiles } from './simulated-update.ts'
import { writePair } from './versions.ts'

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
  const { claims } = layout
  const rounds = { warmUps: WARM_UPS, rounds: ROUNDS, claims }
  yield* predictedRows({ what: layout.name, updates, calibration, small, jobs, ...rounds }, note)
}
