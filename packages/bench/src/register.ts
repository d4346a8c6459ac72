import { createRegistry, type Registry } from 'ckpt/daemon/registry/registry'
import type { Library } from '@ckpt/cuda'
import { type Bench, sizeName } from './bench.ts'
import { type BenchCheckpoint, compareHeld, layersOf, writeVersions } from './checkpoint.ts'
import { daemonOptions } from './daemon-options.ts'
import type { Timed } from './measure.ts'
import { FileDigests } from './pattern-file.ts'
import { measureRow } from './row.ts'

const NAME = 'bench'
const MEMORY = ['new', 'kept'] as const

/** Two files that were just written into pinned host memory, which is new or was pinned for the version before. */
export const register: Bench = {
  name: 'register',
  async *rows({ devices, sizes, dir, open }) {
    const options = daemonOptions(devices, null, dir)
    const library = open(options.library)
    await using stack = new AsyncDisposableStack()
    const registry = await createRegistry(options)
    stack.defer(() => registry.close())
    for (const size of sizes) {
      const versions = await writeVersions(dir, layersOf(size), size)
      const { bytes, tensors } = versions[0]
      for (const memory of MEMORY) {
        yield await measureRow(
          { bench: 'register', case: `${sizeName(size)}, memory ${memory}`, tensors, bytes },
          registrations(registry, library, versions, memory === 'new'),
        )
      }
    }
  },
}

function registrations(
  registry: Registry,
  library: Library,
  versions: readonly [BenchCheckpoint, BenchCheckpoint],
  force: boolean,
): Timed {
  const digests = new FileDigests()
  let [present, next] = versions
  return {
    prepare: async () => {
      ;[present, next] = [next, present]
      await registry.drop(NAME, { force })
    },
    run: async () => {
      await registry.register(NAME, { files: [...present.files] }, null)
    },
    check: () => {
      const lease = registry.lease(NAME)
      try {
        return compareHeld(library, lease.version, present.ranges, digests)
      } finally {
        lease.release(false)
      }
    },
  }
}
