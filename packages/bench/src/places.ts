import { mkdtempSync, rmSync, statfsSync } from 'node:fs'
import type { BenchContext } from './bench.ts'

/** Where files lie that host memory is made of or filled from. */
export interface Place {
  readonly name: 'page cache' | '/dev/shm'
  readonly dir: string
}

/** Shared memory: files there are in memory and stay there. */
export const SHM = '/dev/shm'

/** `TMPFS_MAGIC` of linux/magic.h. */
const TMPFS = 0x01021994

/**
 * The bench's own directory, whose files are on disk and in the page cache since they were just written, and one in shared
 * memory, which `stack` removes. Without a temporary directory on disk there is the second alone, and a note.
 */
export function openPlaces(
  stack: DisposableStack | AsyncDisposableStack,
  { dir, note }: BenchContext,
  bench: string,
): Place[] {
  const shm = mkdtempSync(`${SHM}/ckpt-bench-${process.pid}-`)
  stack.defer(() => rmSync(shm, { recursive: true, force: true }))
  const shared: Place = { name: SHM, dir: shm }
  if (statfsSync(dir).type !== TMPFS) return [{ name: 'page cache', dir }, shared]
  note(
    `${bench}: page cache left out, the temporary directory is itself in memory (TMPDIR names another)`,
  )
  return [shared]
}
