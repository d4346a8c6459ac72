import { join } from 'node:path'
import type { UpdateReport } from '@ckpt/core'
import type { DaemonClient } from 'ckpt/cli/client'
import { type Bench, type BenchContext, MIB } from './bench.ts'
import { atLeast, atMost, type Claim } from './claims.ts'
import { startDaemons } from './daemon-cluster.ts'
import { median, secondsOfRun, type Timed } from './measure.ts'
import type { PlainReads } from './p2p-reader.ts'
import { SHM } from './places.ts'
import { measureRow, type Row } from './row.ts'
import { startEngine } from './service.ts'
import { checkEngines, updateEngines } from './updates.ts'
import { type Versions, writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

/** What UCX may use: everything between processes of one machine, or what it has between hosts without RDMA. */
const WAYS = [
  { name: 'shared memory', env: {} },
  { name: 'TCP', env: { UCX_TLS: 'tcp' } },
] as const
/** Percent of a plain loop over `ucp_get_nbx`. */
const SHARE_LEAST = 90
const HEALTH_SECONDS_MOST = 0.05
const WARM_UPS = 2
const HEALTH_EVERY_MS = 5

/**
 * Updates of a rank whose host has nothing: its daemon reads the checkpoint out of the memory of another one, which has a rank of its
 * own that is not in the update, and answers its health route meanwhile.
 */
export const p2p: Bench = {
  name: 'p2p',
  bytesLeast: 64 * MIB,
  async *rows(context) {
    // of the daemons' memory, whatever the device is
    for (const workload of workloads(context.sizes, context.models)) {
      await using stack = new AsyncDisposableStack()
      const versions = await writePair(stack, workload, 1, SHM)
      for (const way of WAYS) yield await wayRow(context, versions, workload, way)
    }
  },
}

async function wayRow(
  { devices, dir }: BenchContext,
  versions: Versions,
  workload: Workload,
  { name: way, env }: (typeof WAYS)[number],
): Promise<Row> {
  await using stack = new AsyncDisposableStack()
  const plain = await plainReads(versions.bytes, env)
  const daemons = await startDaemons(stack, devices, 2, join(dir, way), [], env)
  // the one that leads owns the memory
  const [owner, receiver] = daemons.map(({ client }) => client) as [DaemonClient, DaemonClient]
  for (const { name, files } of versions.both) await owner.register(name, { files: [...files] })
  const engines = [{ url: await startEngine(stack, devices, 1), ranks: [1] }]
  const reports: UpdateReport[] = []
  const timed: Timed = {
    prepare: () => versions.next(),
    run: async () => {
      const { name } = versions.present
      reports.push(await updateEngines(receiver, name, engines, 'pipelined', { ranks: [1] }))
    },
    check: () => checkEngines(engines, versions.present.expected),
  }
  for (let i = 0; i < WARM_UPS; i++) await secondsOfRun(timed)
  reports.length = 0
  const health = new HealthWatch(owner)
  const name = `${workload.name}, ${way} (${plain.transport})`
  const limitGbPerSecond = versions.bytes / median(plain.seconds) / 1e9
  const row = await measureRow({ ...versions.head('p2p', name), limitGbPerSecond }, timed)
  const slowest = await health.end()
  return { ...row, claims: claimsOf(name, reports, limitGbPerSecond, slowest) }
}

function claimsOf(
  name: string,
  reports: readonly UpdateReport[],
  limitGbPerSecond: number,
  slowestSeconds: number,
): Claim[] {
  const rates = reports.map(({ bytes, stages: { h2d } }) => bytes / h2d.busy_s / 1e9)
  const share = (100 * median(rates)) / limitGbPerSecond
  return [
    atLeast(`p2p ${name}: of plain gets`, share, SHARE_LEAST, '%'),
    atMost(`p2p ${name}: slowest health answer`, slowestSeconds, HEALTH_SECONDS_MOST, 's'),
  ]
}

async function plainReads(bytes: number, env: Record<string, string>): Promise<PlainReads> {
  const program = join(import.meta.dir, 'p2p-reader.ts')
  const child = Bun.spawn([process.execPath, program, String(bytes)], {
    env: { ...process.env, ...env },
    stdout: 'pipe',
    stderr: 'inherit',
  })
  const text = await new Response(child.stdout).text()
  if ((await child.exited) !== 0) throw new Error('the plain reads have failed')
  return JSON.parse(text) as PlainReads
}

/** Asks a daemon's health again and again. */
class HealthWatch {
  readonly #done: Promise<number>
  #ended = false

  constructor(client: DaemonClient) {
    this.#done = this.#watch(client)
  }

  async #watch(client: DaemonClient): Promise<number> {
    let slowest = 0
    while (!this.#ended) {
      const begin = performance.now()
      if (!(await client.answers())) return Number.POSITIVE_INFINITY
      slowest = Math.max(slowest, (performance.now() - begin) / 1000)
      await Bun.sleep(HEALTH_EVERY_MS)
    }
    return slowest
  }

  /** Seconds of the slowest answer. */
  end(): Promise<number> {
    this.#ended = true
    return this.#done
  }
}
