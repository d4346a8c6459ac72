import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** Threads that come and go as JavaScript's engine and its event loop see fit. */
const OWN_THREADS =
  /^(JITWorker|JSCWarmUp|HeapHelper|Bun Pool.*|mi-scavenger|HTTP Client|.*ollector Thread)$/

/** What a process holds of the system: how many of each kind. */
export interface Holdings {
  /** Open ones, by what they are of. */
  readonly descriptors: Counts
  /** Of native code and Workers, by name. */
  readonly threads: Counts
  /** Shared memory that it has mapped. */
  readonly mappings: Counts
}
type Counts = ReadonlyMap<string, number>
export const HOLDINGS = [
  'descriptors',
  'threads',
  'mappings',
] as const satisfies readonly (keyof Holdings)[]

export function holdingsOf(pid: number): Holdings {
  const proc = `/proc/${pid}`
  const descriptors = readdirSync(`${proc}/fd`).map((fd) =>
    ifThere(() => readlinkSync(`${proc}/fd/${fd}`)),
  )
  const threads = readdirSync(`${proc}/task`).map((thread) =>
    ifThere(() => readFileSync(`${proc}/task/${thread}/comm`, 'utf8').trim()),
  )
  const maps = readFileSync(`${proc}/maps`, 'utf8').split('\n')
  return {
    descriptors: count(descriptors),
    threads: count(threads.filter((name) => !OWN_THREADS.test(name ?? ''))),
    mappings: count(maps.map((line) => line.match(/\/dev\/shm\/.*/)?.[0] ?? null)),
  }
}

/** It may have gone since the directory was read. */
function ifThere(read: () => string): string | null {
  try {
    return read()
  } catch {
    return null
  }
}

/** Those that differ by a number or by where they are count as one kind. */
function count(names: readonly (string | null)[]): Counts {
  const counts = new Map<string, number>()
  for (const name of names) {
    if (name === null) continue
    const kind = name
      .replace(/:\[\d+\]$/, '')
      .replace(/\/dev\/shm\/(ckpt|ucx_shm_posix).*/, 'shared memory')
    counts.set(kind, (counts.get(kind) ?? 0) + 1)
  }
  return counts
}

/** How many more there are, and of which kinds. */
export function growthOf(before: Counts, now: Counts): { more: number; kinds: string } {
  const kinds = [...new Set([...before.keys(), ...now.keys()])]
  const differences = kinds.map(
    (kind) => [kind, (now.get(kind) ?? 0) - (before.get(kind) ?? 0)] as const,
  )
  return {
    more: differences.reduce((sum, [, more]) => sum + more, 0),
    kinds: differences
      .filter(([, more]) => more > 0)
      .map(([kind, more]) => `${more} ${kind}`)
      .join(', '),
  }
}
