import { expectedTensors } from 'ckpt/cli/verify-engine'
import type { Registry } from 'ckpt/daemon/registry/registry'
import type { Updates } from 'ckpt/daemon/updates/updates'
import type { RunningEngine } from 'ckpt/engines/reference/index'
import { type Bench, mib } from './bench.ts'
import { layersOf, writeVersions } from './checkpoint.ts'
import { daemonOptions, startParts } from './daemon-parts.ts'
import { compareWeights, type Expected, RANKS, startEngine, targetOf, weightsOf } from './engine.ts'
import type { Timed } from './measure.ts'
import { measureRow } from './row.ts'

const MODES = ['pipelined', 'serial'] as const
const TIMEOUT_SECONDS = 120

type Mode = (typeof MODES)[number]

interface Version {
  /** Of the checkpoint in the registry. */
  readonly name: string
  readonly expected: Expected
}

/** A whole update from its start to its report: registry, rank Workers and a reference engine of two ranks in this process. */
export const update: Bench = {
  name: 'update',
  async *rows({ devices, sizes, dir }) {
    await using stack = new AsyncDisposableStack()
    const options = daemonOptions(devices, RANKS, dir)
    const { registry, updates } = await startParts(stack, options)
    for (const size of sizes) {
      // an engine keeps what it has learned: each size has one of its own
      await using engineStack = new AsyncDisposableStack()
      const engine = await startEngine(devices)
      engineStack.defer(() => engine.close())
      const { bytes, tensors, versions } = await registerVersions(registry, dir, size)
      for (const mode of MODES) {
        const name = `${mib(size)}, ${RANKS} ranks, ${mode}`
        const head = { bench: 'update', case: name, tensors, bytes }
        yield await measureRow(head, updatesOf(updates, engine, versions, mode))
      }
      for (const { name } of versions) await registry.drop(name, { force: true })
    }
  },
}

async function registerVersions(registry: Registry, dir: string, size: number) {
  const written = await writeVersions(dir, layersOf(size), size)
  const versions: Version[] = []
  for (const [index, { files }] of written.entries()) {
    const name = `version-${index}`
    await registry.register(name, { files: [...files] }, null)
    versions.push({ name, expected: await expectedTensors(files, RANKS) })
  }
  const { bytes, tensors } = written[0]
  return { bytes, tensors, versions: versions as [Version, Version] }
}

/** The versions take turns, so every update changes every tensor. */
function updatesOf(
  updates: Updates,
  engine: RunningEngine,
  versions: readonly [Version, Version],
  mode: Mode,
): Timed {
  let [present, next] = versions
  return {
    prepare: () => {
      ;[present, next] = [next, present]
    },
    run: async () => {
      const { done } = updates.start(present.name, {
        engines: [targetOf(engine)],
        mode,
        timeout: TIMEOUT_SECONDS,
      })
      await done
    },
    check: async () => compareWeights(await weightsOf(engine), present.expected),
  }
}
