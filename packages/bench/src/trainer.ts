import { selectDevices } from '@ckpt/cuda'
import { addressText } from 'ckpt/cli/client'
import { type Bench, type BenchContext, RATE_BYTES_LEAST } from './bench.ts'
import { atLeast, type Claim } from './claims.ts'
import { compareWeights, weightsOf } from './engine.ts'
import { type Checked, median } from './measure.ts'
import { percentOfLimit, type Row, rowOf } from './row.ts'
import { startDaemon, startEngine, targetOf, TIMEOUT_SECONDS } from './service.ts'
import { runTrainer, type TrainerReport } from './trainer-python.ts'
import { type Workload, workloadBytes, workloads } from './workloads.ts'

const NAME = 'bench'
/** The daemon holds one version while the next is written, so the third is the first into memory of one before. */
const VERSIONS_NEW = 2
const VERSIONS_KEPT = 6
/** Percent of the D2H rate that the trainer's process has measured itself. */
const SHARE_LEAST = 90
/** From CPU memory nothing bounds it that could be measured without copying as the client does. */
const CPU_GB_PER_SECOND_LEAST = 25

/** Where the trainer has its tensors. */
interface Place {
  readonly words: string
  /** Of torch. */
  readonly device: string
}

export const CPU: Place = { words: 'tensors in CPU memory', device: 'cpu' }

export function gpuOf(device: number): Place {
  return { words: 'tensors on the GPU', device: `cuda:${device}` }
}

/** A trainer's process registers tensors that it has in memory, version after version, with the Python client. */
export const trainer: Bench = {
  name: 'trainer',
  onRequest: true,
  async *rows(context) {
    const { library, ranks } = selectDevices(context.devices, null)
    const cuda = library.kind === 'cuda'
    const places = cuda ? [gpuOf(ranks[0]?.device ?? 0), CPU] : [CPU]
    for (const workload of workloads(context.sizes, context.models)) {
      const claimed = cuda && workloadBytes(workload) >= RATE_BYTES_LEAST
      for (const place of places) {
        const { report, checked } = await registrations(context, workload, place)
        yield* rowsOf(workload, place, report, checked, claimed)
      }
    }
  },
}

/** A daemon of their own: what it keeps of other versions is no new memory. */
async function registrations(
  { devices, dir, python }: BenchContext,
  { tensors }: Workload,
  { device }: Place,
): Promise<{ report: TrainerReport; checked: Checked }> {
  await using stack = new AsyncDisposableStack()
  const { client } = await startDaemon(stack, devices, 1, dir)
  const report = await runTrainer(python, {
    daemon: addressText(client.address),
    checkpoint: NAME,
    device,
    tensors,
    versions: VERSIONS_NEW + VERSIONS_KEPT,
  })
  const engine = await startEngine(stack, devices, 1)
  await client.update(NAME, { engines: [targetOf(engine, 1)], timeout: TIMEOUT_SECONDS })
  const expected = new Map(
    tensors.map(({ name }) => [name, { sha256: [report.sha256[name] ?? 'not told'] }]),
  )
  return { report, checked: compareWeights(await weightsOf(engine), expected, 1) }
}

/** The first call, then those that write into memory of versions before, whose last was compared. */
export function rowsOf(
  workload: Workload,
  { words, device }: Place,
  { seconds, d2h_gb_per_s: rates }: TrainerReport,
  checked: Checked,
  claimed: boolean,
): Row[] {
  const name = `${workload.name}, ${words}`
  const sizes = { tensors: workload.tensors.length, bytes: workloadBytes(workload) }
  const head = { bench: 'trainer', case: name, ...sizes }
  const first = rowOf({ ...head, case: `${name}, memory new` }, seconds.slice(0, 1), {
    compared: 0,
    wrong: 0,
  })
  const limit = rates.length === 0 ? {} : { limitGbPerSecond: median(rates) }
  const kept = rowOf({ ...head, ...limit }, seconds.slice(VERSIONS_NEW), checked)
  return [first, claimed ? { ...kept, claims: [claimOf(kept, device)] } : kept]
}

function claimOf(row: Row, device: string): Claim {
  const what = `trainer ${row.case}`
  return device === CPU.device
    ? atLeast(what, row.gb_per_s ?? Number.NaN, CPU_GB_PER_SECOND_LEAST, 'GB/s')
    : atLeast(`${what}, of the D2H rate`, percentOfLimit(row) ?? Number.NaN, SHARE_LEAST, '%')
}
