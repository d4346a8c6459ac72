import type { Library, LibraryOptions } from '@ckpt/cuda'
import type { Row } from './row.ts'

export interface BenchContext {
  /** `host`, `host:D`, `cuda`, `cuda:I,J`, `auto`: what `selectDevices` takes. */
  readonly devices: string
  /** Bytes of each size, none below `bytesLeast` of the bench. */
  readonly sizes: readonly number[]
  /** Names of models, which `direct`, `update`, `fresh`, `peers`, `trainer` and `trace` take instead of the sizes. */
  readonly models: readonly string[]
  /** Empty directory of this bench. */
  readonly dir: string
  /** A Python with torch, for `peers` and `trainer`. */
  readonly python: string
  /** Wheels to install the peer from; null: PyPI. */
  readonly wheels: string | null
  /** The file that `trace` writes. */
  readonly trace: string
  /** Tells what was left out and why: a line before the verdict. */
  readonly note: (text: string) => void
  /** Opens the native library. */
  readonly open: (options: LibraryOptions) => Library
}

/** One stage. What `rows` allocates is free when it ends, also when it is left early. */
export interface Bench {
  readonly name: string
  /** Runs only when it is asked for by name. */
  readonly onRequest?: boolean
  /** The smallest size it takes, smaller ones become this; absent: 1 MiB, a checkpoint's smallest layer. */
  readonly bytesLeast?: number
  rows(context: BenchContext): AsyncGenerator<Row, void, undefined>
}

export const KIB = 2 ** 10
export const MIB = 2 ** 20
export const GIB = 2 ** 30
/** A rate is claimed from this size on: smaller ones are mostly set-up. */
export const RATE_BYTES_LEAST = 4 * GIB

/** The smallest size of the benches of copies: one page. */
export const COPY_BYTES_LEAST = 4 * KIB

/** `192 B`, `64 KiB`, `16 MiB`, `1 GiB`: the largest unit that leaves a whole number. */
export function sizeName(bytes: number): string {
  if (bytes % GIB === 0) return `${bytes / GIB} GiB`
  if (bytes % MIB === 0) return `${bytes / MIB} MiB`
  return bytes % KIB === 0 ? `${bytes / KIB} KiB` : `${bytes} B`
}

/** The sizes as a bench takes them, each once. */
export function sizesOf({ bytesLeast = MIB }: Bench, sizes: readonly number[]): number[] {
  return [...new Set(sizes.map((bytes) => Math.max(bytes, bytesLeast)))]
}
