import type { UpdateReport } from '@ckpt/core'
import { selectDevices } from '@ckpt/cuda'
import { type Bench, type BenchContext } from './bench.ts'
import { atLeast, atMost, type Claim } from './claims.ts'
import { secondsOfRun } from './measure.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { SHM } from './places.ts'
import { percentOfLimit, type Row } from './row.ts'
import { startEngine } from './service.ts'
import { Updates } from './updates.ts'
import { type Versions, writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

const ENGINES = [2, 4] as const
const MODES = ['pipelined', 'direct'] as const
/** As one rank alone reaches. */
const SHARE_LEAST = 92
/** Of the checkpoint's bytes that all links bring together, percent: ends of tensors are not worth waiting for another rank. */
const BROUGHT_MOST = 102
/** The engines have their memory, and say where it is. */
const WARM_UPS = 3

/**
 * Whole updates of engines with a rank each, on the devices in turn, which all hold the same, as a client sees them: each byte goes
 * over one link once.
 */
export const replicas: Bench = {
  name: 'replicas',
  onRequest: true,
  async *rows(context) {
    for (const workload of workloads(context.sizes, context.models)) {
      for (const count of ENGINES) yield* countRows(context, workload, count)
    }
  },
}

async function* countRows(
  { devices: all, dir, open }: BenchContext,
  workload: Workload,
  count: number,
): AsyncGenerator<Row> {
  // an engine of one rank knows the first device of the host library only
  const devices = selectDevices(all, count).library.kind === 'host' ? 'host:1' : all
  await using stack = new AsyncDisposableStack()
  const copies = new PinnedCopies(stack, devices, open)
  const versions = await writePair(stack, workload, 1, SHM)
  const engines = await Promise.all(
    Array.from({ length: count }, async (_, rank) => {
      const on = deviceOfRank(devices, count, rank)
      return { url: await startEngine(stack, on, 1, ['--direct']), ranks: [rank] }
    }),
  )
  const updates = await Updates.start(stack, devices, count, dir, versions, engines)
  versions.removeFiles()
  for (const mode of MODES) yield await modeRow(copies, versions, updates, mode, workload, count)
}

/** Of an engine: the device that the daemon gives its rank. */
function deviceOfRank(devices: string, ranks: number, rank: number): string {
  const { library, ranks: infos } = selectDevices(devices, ranks)
  return library.kind === 'cuda' ? `cuda:${infos[rank]?.device}` : devices
}

async function modeRow(
  copies: PinnedCopies,
  versions: Versions,
  updates: Updates,
  mode: (typeof MODES)[number],
  workload: Workload,
  count: number,
): Promise<Row> {
  const timed = updates.timed(mode)
  for (let i = 0; i < WARM_UPS; i++) await secondsOfRun(timed)
  const name = `${workload.name}, ${count} engines, ${mode}`
  return await copies.measureRow(versions.head('replicas', name), timed, (row) => {
    const share = percentOfLimit(row) ?? Number.NaN
    const what = `replicas ${name}: whole call, of the pinned H2D rate`
    return [atLeast(what, share, SHARE_LEAST, '%'), broughtClaim(name, versions, updates.reports)]
  })
}

function broughtClaim(name: string, { bytes }: Versions, reports: readonly UpdateReport[]): Claim {
  const brought = reports.at(-1)?.stages.h2d.bytes ?? Number.NaN
  const what = `replicas ${name}: over all links, of the checkpoint`
  return atMost(what, (100 * brought) / bytes, BROUGHT_MOST, '%')
}
