import { mkdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Library } from '@ckpt/cuda'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { createRegistry } from 'ckpt/daemon/registry/held'
import type { Registry } from 'ckpt/daemon/registry/registry'
import { type Bench, type BenchContext, MIB, RATE_BYTES_LEAST, sizeName } from './bench.ts'
import { type BenchCheckpoint, compareHeld, layersOf, writeVersions } from './checkpoint.ts'
import { atLeast } from './claims.ts'
import { daemonOptions } from './daemon-options.ts'
import type { Timed } from './measure.ts'
import { FileDigests } from './pattern-file.ts'
import { openPlaces, type Place } from './places.ts'
import { MapLimit, ReadLimit, type RegisterLimit } from './register-limits.ts'
import { measureRow, percentOfLimit, type Row } from './row.ts'

const NAME = 'bench'
const CASES = ['memory new', 'memory kept', 'in place'] as const
/**
 * Of the larger checkpoints, which a rate is claimed of: about as large as the matrices of an 8B model. Each tensor costs some microseconds,
 * whatever its size.
 */
const LARGE_MATRIX_BYTES = 32 * MIB
/**
 * Percent of the limit, with the CUDA library. On the machine where the limits were 47.5 GB/s for reads, 25 for mapping shared
 * memory and 49 for mapping the page cache, they are 38, 22 and 40 GB/s.
 */
const SHARE_LEAST: Shares = {
  'memory kept': { 'page cache': 80, '/dev/shm': 80 },
  'in place': { 'page cache': 82, '/dev/shm': 88 },
}

type Case = (typeof CASES)[number]
type Shares = Readonly<Record<string, Readonly<Record<Place['name'], number>>>>

/** Two versions that take turns, in files that stay. */
interface Written {
  readonly versions: readonly [BenchCheckpoint, BenchCheckpoint]
  readonly digests: FileDigests
}

/**
 * Files that were just written into pinned host memory, which is new or was pinned for the version before, or held in place.
 *
 * @param claimedFromBytes checkpoints of this size on must reach a rate, with the CUDA library
 */
export function registerBench(claimedFromBytes: number, shareLeast = SHARE_LEAST): Bench {
  return {
    name: 'register',
    async *rows(context) {
      const { devices, sizes, dir, open } = context
      const options = daemonOptions(devices, null, dir)
      const library = open(options.library)
      await using stack = new AsyncDisposableStack()
      const places = openPlaces(stack, context, 'register')
      const registry = await createRegistry(options)
      stack.defer(() => registry.close())
      for (const size of sizes) {
        for (const place of places) {
          const tensors = layersOf(size, size < RATE_BYTES_LEAST ? MIB : LARGE_MATRIX_BYTES)
          for await (const row of placeRows(context, library, registry, place, size, tensors)) {
            const claimed = library.kind === 'cuda' && (row.bytes ?? 0) >= claimedFromBytes
            yield claimed ? claim(row, place, shareLeast) : row
          }
        }
      }
    },
  }
}

export const register = registerBench(RATE_BYTES_LEAST)

async function* placeRows(
  { note }: BenchContext,
  library: Library,
  registry: Registry,
  place: Place,
  size: number,
  shapes: readonly TensorShape[],
): AsyncGenerator<Row> {
  const dir = join(place.dir, 'versions')
  mkdirSync(dir)
  using stack = new DisposableStack()
  try {
    const versions = await writeVersions(dir, shapes, size)
    const written = { versions, digests: new FileDigests() }
    const { bytes, tensors } = versions[0]
    for (const name of CASES) {
      const refusal = name === 'in place' ? await inPlaceRefusal(registry, versions[0]) : null
      if (refusal !== null) {
        note(`register: ${place.name}, in place left out: ${refusal}`)
        continue
      }
      const limit = limitOf(library, stack, name, versions[0])
      const head = { bench: 'register', case: caseName(size, place, name), tensors, bytes }
      const row = await measureRow(head, registrations(registry, library, written, name, limit))
      yield limit === null ? row : { ...row, limit_gb_per_s: limit.gbPerSecond }
    }
  } finally {
    await registry.drop(NAME, { force: true })
    rmSync(dir, { recursive: true, force: true })
  }
}

function caseName(size: number, place: Place, name: Case): string {
  return `${sizeName(size)} ${place.name}, ${name}`
}

/** New memory has none: what the kernel takes for it is measured nowhere else. Nor has a mapping that nothing pins. */
function limitOf(
  library: Library,
  stack: DisposableStack,
  name: Case,
  { files }: BenchCheckpoint,
): RegisterLimit | null {
  if (name === 'memory kept') {
    const bytes = files.reduce((sum, path) => sum + statSync(path).size, 0)
    return new ReadLimit(library, stack, bytes)
  }
  return name === 'in place' && library.kind === 'cuda' ? new MapLimit(library) : null
}

function claim(row: Row, place: Place, shareLeast: Shares): Row {
  const name = CASES.find((one) => row.case.endsWith(one)) ?? ''
  const least = shareLeast[name]?.[place.name]
  if (least === undefined) return row
  const share = percentOfLimit(row) ?? Number.NaN
  return { ...row, claims: [atLeast(`register ${row.case}, of the limit`, share, least, '%')] }
}

/** Why the daemon reads the files instead of holding them in place; null: it holds all of them. */
async function inPlaceRefusal(
  registry: Registry,
  { files }: BenchCheckpoint,
): Promise<string | null> {
  await registry.drop(NAME, { force: true })
  const { notes } = await registry.register(NAME, { files: [...files], in_place: true }, null)
  const lease = registry.lease(NAME)
  const held = lease.version.files.length
  lease.release(false)
  if (held === files.length) return null
  return notes?.[0] ?? `${held} of ${files.length} files are held`
}

function registrations(
  registry: Registry,
  library: Library,
  { versions, digests }: Written,
  name: Case,
  limit: RegisterLimit | null,
): Timed {
  let [present, next] = versions
  // what the arena keeps counts beside files in place: they would be timed with making room
  const force = name !== 'memory kept'
  const in_place = name === 'in place'
  return {
    prepare: async () => {
      ;[present, next] = [next, present]
      await registry.drop(NAME, { force })
      await limit?.time(present.files)
    },
    run: async () => {
      await registry.register(NAME, { files: [...present.files], in_place }, null)
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
