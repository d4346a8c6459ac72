import type { DaemonClient } from 'ckpt/cli/client'
import { type Bench, type BenchContext } from './bench.ts'
import { atMost, type Claim } from './claims.ts'
import { compareWeights, weightsOf } from './engine.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { secondsOfRun, type Timed } from './measure.ts'
import { SHM } from './places.ts'
import { measureRow, type Row, type RowHead, rowOf } from './row.ts'
import { startDaemon, startEngine, targetOf, TIMEOUT_SECONDS } from './service.ts'
import { type Versions, writePair } from './versions.ts'
import { type Workload, workloads } from './workloads.ts'

const NAME = 'bench'
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
        yield* placeRows(context, workload, 1, { dir: SHM, name: `${SHM}, ` })
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
  if (copies !== null) {
    // until the daemon has the memory of two versions
    for (const count of ['first', 'second']) {
      const seconds = await secondsOfRun(loads(daemon.client, engine, versions, ranks, false))
      yield rowOf(headOf(count), [seconds], { compared: 0, wrong: 0 })
    }
  }
  for (const { name, wait } of ORDERS) {
    const timed = loads(daemon.client, engine, versions, ranks, wait)
    yield copies === null
      ? await measureRow(headOf(name), timed)
      : await copies.measureRow(headOf(name), timed, (row) => (wait ? [] : claimsOf(workload, row)))
  }
}

function claimsOf({ name }: Workload, row: Row): Claim[] {
  const most = SECONDS_MOST[name]
  return most === undefined ? [] : [atMost(`fresh ${row.case}`, row.p50_s, most, 's')]
}

/** The versions take turns; each replaces the one before. */
function loads(
  client: DaemonClient,
  engine: string,
  versions: Versions,
  ranks: number,
  wait: boolean,
): Timed {
  return {
    prepare: () => versions.next(),
    run: async () => {
      const files = [...versions.present.files]
      await client.register(NAME, { files, replace: true, wait })
      const engines = [targetOf(engine, ranks)]
      await client.update(NAME, { engines, timeout: TIMEOUT_SECONDS })
    },
    check: async () => compareWeights(await weightsOf(engine), versions.present.expected, ranks),
  }
}
