import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Handle, Library } from '@ckpt/cuda'
import { Arena } from 'ckpt/daemon/memory/arena'
import { mapInPlace, unmap } from 'ckpt/daemon/memory/in-place'
import type { BenchContext } from './bench.ts'
import type { SourceBytes } from './device-bytes.ts'
import { openPlaces, type Place } from './places.ts'

/** Host memory that devices copy from; all of them hold the same bytes. */
export interface HostSource {
  readonly name: string
  readonly buffer: Handle
}

const NAMES: Readonly<Record<Place['name'], string>> = {
  '/dev/shm': 'shm',
  'page cache': 'page cache',
}

/**
 * The daemon's own pinned memory, and files that it maps in place, read-only: one in shared memory, one on disk and in the page
 * cache. What cannot be mapped here (a file system without leases, a device that takes no read-only memory) is left out with
 * a note. `stack` frees them.
 */
export function hostSources(
  context: BenchContext,
  library: Library,
  stack: DisposableStack,
  pinned: SourceBytes,
): HostSource[] {
  const mapped = openPlaces(stack, context, 'h2d').map((place) => {
    const path = join(place.dir, 'in-place')
    copyFileSync(pinned.path, path)
    const buffer = mapFile(context, library, stack, path)
    return { name: NAMES[place.name], buffer }
  })
  return [
    { name: 'pinned', buffer: pinned.buffer },
    ...mapped.filter((source): source is HostSource => source.buffer !== null).toReversed(),
  ]
}

/** As the daemon does; null: it would read the file into memory instead. */
function mapFile(
  { note }: BenchContext,
  library: Library,
  stack: DisposableStack,
  path: string,
): Handle | null {
  const arena = new Arena(library, Number.MAX_SAFE_INTEGER)
  const file = library.fileOpen(path)
  stack.defer(() => library.fileClose(file))
  const notes: string[] = []
  const opened = { file, info: library.fileDescribe(file), path, realPath: path }
  const mapped = mapInPlace(library, arena, opened, 0, notes)
  for (const text of notes) note(`h2d: left out: ${text}`)
  if (mapped === null) return null
  stack.defer(() => unmap(library, arena, mapped))
  return mapped.buffer
}
