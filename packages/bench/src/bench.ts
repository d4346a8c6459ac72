import type { Library, LibraryOptions } from '@ckpt/cuda'
import type { Row } from './row.ts'

export interface BenchContext {
  /** `host`, `host:D`, `cuda`, `cuda:I,J`, `auto`: what `selectDevices` takes. */
  readonly devices: string
  /** Bytes of each size, multiples of 1 MiB. */
  readonly sizes: readonly number[]
  /** Names of models, which `update`, `fresh` and `peers` take instead of the sizes. */
  readonly models: readonly string[]
  /** Empty directory of this bench. */
  readonly dir: string
  /** A Python with torch for CUDA, for `peers`. */
  readonly python: string
  /** Wheels to install the peer from; null: PyPI. */
  readonly wheels: string | null
  /** Opens the native library. */
  readonly open: (options: LibraryOptions) => Library
}

/** One stage. What `rows` allocates is free when it ends, also when it is left early. */
export interface Bench {
  readonly name: string
  /** Runs only when it is asked for by name. */
  readonly onRequest?: boolean
  rows(context: BenchContext): AsyncGenerator<Row, void, undefined>
}

export const MIB = 2 ** 20

/** `16 MiB`. */
export function mib(bytes: number): string {
  return `${bytes / MIB} MiB`
}
