import { selectDevices } from '@ckpt/cuda'
import { type Bench, type BenchContext } from './bench.ts'
import { atMost } from './claims.ts'
import { compareWeights, weightsOf } from './engine.ts'
import { PinnedCopies } from './pinned-copies.ts'
import type { Timed } from './measure.ts'
import { measureRow, type Row, type RowHead, rowOf } from './row.ts'
import { type Service, startDaemon, startEngine, targetOf } from './service.ts'
import { type Versions, writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

const NAME = 'bench'
const TIMEOUT_SECONDS = 120
/** Whether the update begins while the files are still being read. */
const ORDERS = [
  { name: 'read, then sent', wait: true },
  { name: 'sent while read', wait: false },
] as const
/** From files written to engine done, in seconds. */
const SECONDS_MOST: Readonly<Record<string, number>> = { dense: 0.55 }

/** From files that were just written to an engine that has them: what a trainer waits for. */
export const fresh: Bench = {
  name: 'fresh',
  async *rows(context) {
    for (const workload of workloads(context.sizes, context.models)) {
      if (!workload.model) yield* placeRows(context, workload, 2, { dir: context.dir, name: '' })
      else {
        yield* placeRows(context, workload, 1, { dir: '/dev/shm', name: '/dev/shm, ' })
        yield* placeRows(context, workload, 1, { dir: context.dir, name: 'page cache, ' })
      }
    }
  },
}

async function* placeRows(
  { devices, dir, open }: BenchContext,
  workload: Workload,
  ranks: number,
  place: { readonly dir: string; readonly name: string },
): AsyncGenerator<Row> {
  await using stack = new AsyncDisposableStack()
  const versions = await writePair(stack, workload, ranks, place.dir)
  const daemon = await startDaemon(stack, devices, ranks, dir)
  const engine = await startEngine(stack, devices, ranks)
  const copies = workload.model ? new PinnedCopies(stack, devices, open) : null
  const headOf = (name: string): RowHead =>
    versions.head('fresh', `${workload.name}, ${place.name}${name}`)
  if (workload.model) {
    // until the daemon has the memory of two versions
    for (const count of ['first', 'second'])
      yield await once(headOf(count), daemon, engine, versions)
  }
  const claimed = workload.model && selectDevices(devices, null).library.kind === 'cuda'
  for (const { name, wait } of ORDERS) {
    const timed = loads(daemon, engine, versions, ranks, wait)
    const prepare = () => {
      timed.prepare?.()
      copies?.time()
    }
    const measured = await measureRow(headOf(name), { ...timed, prepare })
    const row = { ...measured, limit_gb_per_s: copies?.gbPerSecond ?? null }
    const most = SECONDS_MOST[workload.name]
    const claims = claimed && !wait && most !== undefined
    yield claims ? { ...row, claims: [atMost(`fresh ${row.case}`, row.p50_s, most, 's')] } : row
  }
}

async function once(
  head: RowHead,
  daemon: Service,
  engine: string,
  versions: Versions,
): Promise<Row> {
  const { prepare, run } = loads(daemon, engine, versions, 1, false)
  await prepare?.()
  const beginMs = performance.now()
  await run()
  return rowOf(head, [(performance.now() - beginMs) / 1000], { compared: 0, wrong: 0 })
}

/** The versions take turns; each replaces the one before. */
function loads(
  daemon: Service,
  engine: string,
  versions: Versions,
  ranks: number,
  wait: boolean,
): Timed {
  return {
    prepare: () => versions.next(),
    run: async () => {
      const files = [...versions.present.files]
      await daemon.register(NAME, { files, replace: true, wait })
      const engines = [targetOf(engine, ranks)]
      await daemon.update(NAME, { engines, timeout: TIMEOUT_SECONDS })
    },
    check: async () => compareWeights(await weightsOf(engine), versions.present.expected, ranks),
  }
}
