import { expectedTensors } from 'ckpt/cli/verify-engine'
import type { Registry } from 'ckpt/daemon/registry/registry'
import type { Updates } from 'ckpt/daemon/updates/updates'
import type { RunningEngine } from 'ckpt/engines/reference/index'
import { type Bench, mib } from './bench.ts'
import { type BenchCheckpoint, layersOf, writeVersions } from './checkpoint.ts'
import { daemonOptions, startParts } from './daemon-parts.ts'
import { compareWeights, type Expected, RANKS, startEngine, targetOf, weightsOf } from './engine.ts'
import type { Timed } from './measure.ts'
import { measureRow } from './row.ts'

const NAME = 'bench'
const TIMEOUT_SECONDS = 120
/** Whether the update begins while the files are still being read. */
const ORDERS = [
  { name: 'read, then sent', wait: true },
  { name: 'sent while read', wait: false },
] as const

interface Version {
  readonly files: BenchCheckpoint['files']
  readonly expected: Expected
}

/** From files that were just written to an engine that has them: what a trainer waits for. */
export const fresh: Bench = {
  name: 'fresh',
  async *rows({ devices, sizes, dir }) {
    await using stack = new AsyncDisposableStack()
    const options = daemonOptions(devices, RANKS, dir)
    const { registry, updates } = await startParts(stack, options)
    const engine = await startEngine(devices)
    stack.defer(() => engine.close())
    for (const size of sizes) {
      const written = await writeVersions(dir, layersOf(size), size)
      const { bytes, tensors } = written[0]
      const versions: Version[] = []
      for (const { files } of written) {
        versions.push({ files, expected: await expectedTensors(files, RANKS) })
      }
      for (const { name, wait } of ORDERS) {
        const head = { bench: 'fresh', case: `${mib(size)}, ${name}`, tensors, bytes }
        yield await measureRow(head, loads(registry, updates, engine, versions, wait))
      }
      await registry.drop(NAME, { force: true })
    }
  },
}

/** The versions take turns; each replaces the one before. */
function loads(
  registry: Registry,
  updates: Updates,
  engine: RunningEngine,
  versions: readonly Version[],
  wait: boolean,
): Timed {
  let [present, next] = versions as readonly [Version, Version]
  const engines = [targetOf(engine)]
  return {
    prepare: () => {
      ;[present, next] = [next, present]
    },
    run: async () => {
      await registry.register(NAME, { files: [...present.files], replace: true, wait }, null)
      await updates.start(NAME, { engines, timeout: TIMEOUT_SECONDS }).done
    },
    check: async () => compareWeights(await weightsOf(engine), present.expected),
  }
}
