import { type Bench, type BenchContext } from './bench.ts'
import { atLeast } from './claims.ts'
import { secondsOfRun } from './measure.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { SHM } from './places.ts'
import { percentOfLimit, type Row } from './row.ts'
import { startEngine } from './service.ts'
import { Updates } from './updates.ts'
import { type Versions, writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

const RANKS = [2, 4, 8] as const
const WAYS = ['copies', 'nccl'] as const
/** Percent of the pinned H2D rate of the same run: ranks that share a device share its link. */
const SHARE_LEAST = 92
/** Until a communicator is made and the engine has its memory. */
const WARM_UPS = 3

/**
 * Whole updates of ranks that share a device, each with an engine worker, as a client sees them: every byte goes over the device's
 * link once and from there to every other rank, by copies between the rings or by NCCL. With the host library, whose communicators
 * copy too, they only show that it works.
 */
export const ranks: Bench = {
  name: 'ranks',
  onRequest: true,
  async *rows(context) {
    for (const workload of workloads(context.sizes, context.models)) {
      for (const count of RANKS) yield* countRows(context, workload, count)
    }
  },
}

async function* countRows(
  context: BenchContext,
  workload: Workload,
  count: number,
): AsyncGenerator<Row> {
  await using stack = new AsyncDisposableStack()
  const versions = await writePair(stack, workload, count, SHM)
  const engine = await startEngine(stack, context.devices, count)
  for (const way of WAYS) yield await wayRow(context, versions, engine, { workload, count, way })
}

async function wayRow(
  { devices, dir, open }: BenchContext,
  versions: Versions,
  engine: string,
  { workload, count, way }: { workload: Workload; count: number; way: string },
): Promise<Row> {
  await using stack = new AsyncDisposableStack()
  const copies = new PinnedCopies(stack, devices, open)
  const flags = ['--broadcast', way]
  const updates = await Updates.start(stack, devices, count, dir, versions, engine, flags)
  const timed = updates.timed('pipelined')
  for (let i = 0; i < WARM_UPS; i++) await secondsOfRun(timed)
  const name = `${workload.name}, ${count} ranks, ${way}`
  return await copies.measureRow(versions.head('ranks', name), timed, (row) => {
    const share = percentOfLimit(row) ?? Number.NaN
    return [atLeast(`ranks ${name}: whole call, of the pinned H2D rate`, share, SHARE_LEAST, '%')]
  })
}
