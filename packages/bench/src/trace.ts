import { basename } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import type { TraceAnswer, UpdateReport } from '@ckpt/core'
import type { Bench, BenchContext } from './bench.ts'
import { today } from './document.ts'
import { secondsOfRun } from './measure.ts'
import { SHM } from './places.ts'
import { type Row, rowOf } from './row.ts'
import { startEngine } from './service.ts'
import { Updates } from './updates.ts'
import { writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

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
  const versions = await writePair(stack, workload, ranks, workload.model ? SHM : dir)
  const engine = await startEngine(stack, devices, ranks)
  const updates = await Updates.start(stack, devices, ranks, dir, versions, engine)
  versions.removeFiles()
  const timed = updates.timed('auto')
  for (let i = 0; i < WARM_UPDATES; i++) await secondsOfRun(timed)
  const seconds = await secondsOfRun(timed)
  const report = updates.reports.at(-1) as UpdateReport
  const device = chosen[0]?.deviceName ?? 'unknown device'
  await Bun.write(
    path,
    document(await updates.daemon.client.trace(report.update_id), workload, report, device),
  )
  const head = versions.head('trace', `${workload.name}, ${rankWords(ranks)}, to ${basename(path)}`)
  return rowOf(head, [seconds], await updates.check())
}

/** `otherData` is the format's place for what is said of the whole; Perfetto shows it, a picture has the title. */
function document(
  answer: TraceAnswer,
  { name }: Workload,
  { bytes, ranks, mode }: UpdateReport,
  device: string,
): string {
  const gigabytes = `${(bytes / 1e9).toPrecision(3)} GB`
  const title = `One update, ${name}: ${gigabytes}, ${rankWords(ranks)}, ${mode}, ${device}, ${today()}`
  return `${JSON.stringify({ ...answer, otherData: { title } })}\n`
}

function rankWords(ranks: number): string {
  return ranks === 1 ? '1 rank' : `${ranks} ranks`
}
