import { selectDevices } from '@ckpt/cuda'
import type { UpdateReport } from '@ckpt/core'
import { type Bench, type BenchContext, MIB } from './bench.ts'
import { atLeast, atMost, type Claim } from './claims.ts'
import { compareWeights, weightsOf } from './engine.ts'
import { PinnedCopies } from './pinned-copies.ts'
import type { Timed } from './measure.ts'
import { measureRow, type Row } from './row.ts'
import { type Service, startDaemon, startEngine, targetOf } from './service.ts'
import { type Versions, writePair } from './versions.ts'
import { deviceMibMost, type Workload, workloads } from './workloads.ts'

const MODES = ['pipelined', 'serial'] as const
const TIMEOUT_SECONDS = 120
/** Percent of the pinned H2D rate of the same run, for the whole call as a client sees it. */
const SHARE_LEAST: Readonly<Record<string, number>> = { dense: 96, moe: 95 }
/** Percent. */
const FIRST_OF_THIRD_MOST = 110
const TURNAROUND_US_MOST = 100

type Mode = (typeof MODES)[number] | 'auto'

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
async function modelRow({ devices, dir, open }: BenchContext, workload: Workload): Promise<Row> {
  await using stack = new AsyncDisposableStack()
  const copies = new PinnedCopies(stack, devices, open)
  const versions = await writePair(stack, workload, 1, '/dev/shm')
  const engine = await startEngine(stack, devices, 1)
  await warmUp(devices, dir, versions, engine)
  const updates = await Updates.start(stack, devices, 1, dir, versions, engine)
  versions.removeFiles()
  const first: number[] = []
  for (let i = 0; i < 3; i++) first.push(await updates.seconds())
  updates.reports.length = 0
  const head = versions.head('update', `${workload.name}, whole call`)
  const timed = updates.timed('auto')
  const prepare = () => {
    timed.prepare?.()
    copies.time()
  }
  const row = await measureRow(head, { ...timed, prepare })
  const limited = { ...row, limit_gb_per_s: copies.gbPerSecond }
  const cuda = selectDevices(devices, null).library.kind === 'cuda'
  return cuda
    ? { ...limited, claims: claimsOf(workload, limited, first, updates.reports) }
    : limited
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
  for (let i = 0; i < 2; i++) await updates.seconds()
}

function claimsOf(
  workload: Workload,
  { gb_per_s, limit_gb_per_s }: Row,
  first: readonly number[],
  reports: readonly UpdateReport[],
): Claim[] {
  const what = (words: string) => `update ${workload.name}: ${words}`
  const share = ((gb_per_s ?? 0) / (limit_gb_per_s ?? Number.NaN)) * 100
  const ofThird = ((first[0] ?? Number.NaN) / (first[2] ?? Number.NaN)) * 100
  const worst = (of: (report: UpdateReport) => number) => Math.max(...reports.map(of))
  const p99s = reports.map(({ turnaround }) => (turnaround?.p99_s ?? Number.NaN) * 1e6)
  const middle = p99s.toSorted((a, b) => a - b)[p99s.length >> 1] ?? Number.NaN
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
    atMost(what("the daemon's part of a bucket, p99"), middle, TURNAROUND_US_MOST, 'us'),
    atMost(what('device memory taken'), taken, most, 'MiB'),
    atMost(what('device memory left'), left, 0, 'MiB'),
  ]
}

/** Updates of an engine from a daemon that holds both versions. */
class Updates {
  readonly versions: Versions
  readonly reports: UpdateReport[] = []
  readonly #daemon: Service
  readonly #engine: string
  readonly #ranks: number

  private constructor(versions: Versions, daemon: Service, engine: string, ranks: number) {
    this.versions = versions
    this.#daemon = daemon
    this.#engine = engine
    this.#ranks = ranks
  }

  static async start(
    stack: AsyncDisposableStack,
    devices: string,
    ranks: number,
    dir: string,
    versions: Versions,
    engine: string,
  ): Promise<Updates> {
    const daemon = await startDaemon(stack, devices, ranks, dir)
    for (const { name, files } of versions.both) await daemon.register(name, { files: [...files] })
    return new Updates(versions, daemon, engine, ranks)
  }

  timed(mode: Mode): Timed {
    return {
      prepare: () => this.versions.next(),
      run: () => this.#update(mode),
      check: async () => {
        const { expected } = this.versions.present
        return compareWeights(await weightsOf(this.#engine), expected, this.#ranks)
      },
    }
  }

  /** One update, of the other version. */
  async seconds(): Promise<number> {
    this.versions.next()
    const beginMs = performance.now()
    await this.#update('auto')
    return (performance.now() - beginMs) / 1000
  }

  async #update(mode: Mode): Promise<void> {
    const engines = [targetOf(this.#engine, this.#ranks)]
    const request = { engines, mode, timeout: TIMEOUT_SECONDS }
    this.reports.push(await this.#daemon.update(this.versions.present.name, request))
  }
}
