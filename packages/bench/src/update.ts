import type { UpdateReport } from '@ckpt/core'
import { type Bench, type BenchContext, MIB } from './bench.ts'
import { atLeast, atMost, type Claim } from './claims.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { median, secondsOfRun } from './measure.ts'
import { SHM } from './places.ts'
import { measureRow, percentOfLimit, type Row } from './row.ts'
import { startEngine } from './service.ts'
import { Updates } from './updates.ts'
import { type Versions, writePair } from './versions.ts'
import { deviceMibMost, type Workload, workloads } from './workloads.ts'

const MODES = ['pipelined', 'serial'] as const
/** Percent of the pinned H2D rate of the same run, for the whole call as a client sees it. */
const SHARE_LEAST: Readonly<Record<string, number>> = { dense: 96, moe: 95 }
/** Percent. */
const FIRST_OF_THIRD_MOST = 110
const TURNAROUND_US_MOST = 100

/** A whole update as a client sees it, from the call to its answer: daemon and reference engine are processes of their own. */
export const update: Bench = {
  name: 'update',
  async *rows(context) {
    for (const workload of workloads(context.sizes, context.models)) {
      if (workload.model) yield await modelRow(context, workload)
      else yield* sizeRows(context, workload)
    }
  },
}

/** Two ranks, both modes. */
async function* sizeRows({ devices, dir }: BenchContext, workload: Workload): AsyncGenerator<Row> {
  await using stack = new AsyncDisposableStack()
  const versions = await writePair(stack, workload, 2, dir)
  const engine = await startEngine(stack, devices, 2)
  const updates = await Updates.start(stack, devices, 2, dir, versions, engine)
  for (const mode of MODES) {
    const head = updates.versions.head('update', `${workload.name}, 2 ranks, ${mode}`)
    yield await measureRow(head, updates.timed(mode))
  }
}

/** One rank, the mode that the daemon chooses, and what is asked of it. */
export async function modelRow(
  { devices, dir, open }: BenchContext,
  workload: Workload,
): Promise<Row> {
  await using stack = new AsyncDisposableStack()
  const copies = new PinnedCopies(stack, devices, open)
  const versions = await writePair(stack, workload, 1, SHM)
  const engine = await startEngine(stack, devices, 1)
  await warmUp(devices, dir, versions, engine)
  const updates = await Updates.start(stack, devices, 1, dir, versions, engine)
  versions.removeFiles()
  const timed = updates.timed('auto')
  const first: number[] = []
  for (let i = 0; i < 3; i++) first.push(await secondsOfRun(timed))
  updates.reports.length = 0
  const head = versions.head('update', `${workload.name}, whole call`)
  return await copies.measureRow(head, timed, (row) =>
    claimsOf(workload, row, first, updates.reports),
  )
}

/** The engine takes memory for its weights in its first updates, here those of another daemon. */
async function warmUp(
  devices: string,
  dir: string,
  versions: Versions,
  engine: string,
): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const updates = await Updates.start(stack, devices, 1, dir, versions, engine)
  for (let i = 0; i < 2; i++) await secondsOfRun(updates.timed('auto'))
}

function claimsOf(
  workload: Workload,
  row: Row,
  first: readonly number[],
  reports: readonly UpdateReport[],
): Claim[] {
  const what = (words: string) => `update ${workload.name}: ${words}`
  const share = percentOfLimit(row) ?? Number.NaN
  const ofThird = ((first[0] ?? Number.NaN) / (first[2] ?? Number.NaN)) * 100
  const worst = (of: (report: UpdateReport) => number) => Math.max(...reports.map(of))
  const p99s = reports.map(({ turnaround }) => (turnaround?.p99_s ?? Number.NaN) * 1e6)
  const taken = worst(({ device_bytes: { before, peak } }) => peak - before) / MIB
  const left = worst(({ device_bytes: { before, after } }) => after - before) / MIB
  const most = deviceMibMost(workload)
  return [
    atLeast(
      what('whole call, of the pinned H2D rate'),
      share,
      SHARE_LEAST[workload.name] ?? 95,
      '%',
    ),
    atMost(what('first update of a daemon, of the third'), ofThird, FIRST_OF_THIRD_MOST, '%'),
    atMost(what("the daemon's part of a bucket, p99"), median(p99s), TURNAROUND_US_MOST, 'us'),
    atMost(what('device memory taken'), taken, most, 'MiB'),
    atMost(what('device memory left'), left, 0, 'MiB'),
  ]
}
