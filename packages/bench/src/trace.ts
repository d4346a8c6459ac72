import { basename } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import type { TraceAnswer, UpdateReport } from '@ckpt/core'
import type { Bench, BenchContext } from './bench.ts'
import { compareWeights, weightsOf } from './engine.ts'
import { type Row, rowOf } from './row.ts'
import { startDaemon, startEngine, targetOf } from './service.ts'
import { writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

const TIMEOUT_SECONDS = 120
/** Until the engine has its memory and the daemon its plan. */
const WARM_UPDATES = 2

/** One update, warm, of the last size or model; what each stage did when is written to a file. */
export const trace: Bench = {
  name: 'trace',
  onRequest: true,
  async *rows(context) {
    const workload = workloads(context.sizes, context.models).at(-1)
    if (workload !== undefined) yield await traced(context, workload)
  },
}

async function traced(
  { devices, dir, trace: path }: BenchContext,
  workload: Workload,
): Promise<Row> {
  await using stack = new AsyncDisposableStack()
  const chosen = selectDevices(devices, null).ranks
  // a rank per device; a broadcast needs two, which share a device where there is one
  const ranks = Math.max(chosen.length, workload.model ? 1 : 2)
  const versions = await writePair(stack, workload, ranks, workload.model ? '/dev/shm' : dir)
  const engine = await startEngine(stack, devices, ranks)
  const daemon = await startDaemon(stack, devices, ranks, dir)
  for (const { name, files } of versions.both) await daemon.register(name, { files: [...files] })
  versions.removeFiles()
  const update = () => {
    versions.next()
    const request = { engines: [targetOf(engine, ranks)], timeout: TIMEOUT_SECONDS }
    return daemon.update(versions.present.name, request)
  }
  for (let i = 0; i < WARM_UPDATES; i++) await update()
  const beginMs = performance.now()
  const report = await update()
  const seconds = (performance.now() - beginMs) / 1000
  const device = chosen[0]?.deviceName ?? 'unknown device'
  await Bun.write(path, document(await daemon.trace(report.update_id), workload, report, device))
  const head = versions.head('trace', `${workload.name}, ${rankWords(ranks)}, to ${basename(path)}`)
  const { expected } = versions.present
  return rowOf(head, [seconds], compareWeights(await weightsOf(engine), expected, ranks))
}

/** `otherData` is the format's place for what is said of the whole; Perfetto shows it, a picture has the title. */
function document(
  answer: TraceAnswer,
  { name }: Workload,
  { bytes, ranks, mode }: UpdateReport,
  device: string,
): string {
  const day = new Date().toISOString().slice(0, 10)
  const gigabytes = `${(bytes / 1e9).toPrecision(3)} GB`
  const title = `One update, ${name}: ${gigabytes}, ${rankWords(ranks)}, ${mode}, ${device}, ${day}`
  return `${JSON.stringify({ ...answer, otherData: { title } })}\n`
}

function rankWords(ranks: number): string {
  return ranks === 1 ? '1 rank' : `${ranks} ranks`
}
