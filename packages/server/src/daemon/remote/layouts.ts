import { createHash } from 'node:crypto'
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { CkptError, type SourceSpace, type TensorTable } from '@ckpt/core'
import { decodeLayout, encodeLayout, type HeldLayout } from '@ckpt/core/cluster/layout-columns'

/** A layout as it travels between daemons. */
export interface LayoutColumns {
  /** The same for the same tensors at the same places, NUMA nodes included: plans depend on them. */
  readonly key: string
  /** Of `encodeLayout`, compressed: names of tensors are much alike. */
  readonly columns: Uint8Array
}

/** Layouts that are kept; each has some ten megabytes for the largest models. */
const KEPT_MAX = 8
/** Twenty times what the largest published model has. */
const PLAIN_BYTES_MAX = 256 * 2 ** 20
/** Of what is unpacked at once: most parts of a checkpoint of many daemons are not larger. */
const CHUNK_BYTES = 2 ** 19

export function layoutColumns(table: TensorTable, sources: readonly SourceSpace[]): LayoutColumns {
  const plain = encodeLayout({ table, sources })
  const params = { [constants.ZSTD_c_compressionLevel]: 1 }
  // a Buffer is no plain array, whose `slice` copies
  return { key: sha256(plain), columns: new Uint8Array(zstdCompressSync(plain, { params })) }
}

/** @throws CkptError `bad_request` for what is no layout */
export function readColumns(columns: LayoutColumns['columns']): HeldLayout {
  return decodeLayout(unpacked(columns))
}

function unpacked(columns: Uint8Array): Uint8Array {
  try {
    const limits = { maxOutputLength: PLAIN_BYTES_MAX, chunkSize: CHUNK_BYTES }
    return new Uint8Array(zstdDecompressSync(columns, limits))
  } catch (error) {
    throw refuse(CkptError.wrap(error).message)
  }
}

function refuse(why: string): CkptError {
  return new CkptError('bad_request', `the layout of a daemon cannot be read: ${why}`)
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** Layouts by key; of more than {@link KEPT_MAX} the one that was not used for longest goes. */
export class LayoutShelf {
  readonly #kept = new Map<string, HeldLayout>()

  get(key: string): HeldLayout | undefined {
    const layout = this.#kept.get(key)
    if (layout !== undefined) this.#put(key, layout)
    return layout
  }

  /** @throws CkptError `bad_request` for what is no layout, or has another key */
  keep({ key, columns }: LayoutColumns): void {
    const plain = unpacked(columns)
    if (sha256(plain) !== key) throw refuse('it has another digest')
    this.#put(key, decodeLayout(plain))
  }

  #put(key: string, layout: HeldLayout): void {
    this.#kept.delete(key)
    this.#kept.set(key, layout)
    const oldest = this.#kept.keys().next()
    if (this.#kept.size > KEPT_MAX && !oldest.done) this.#kept.delete(oldest.value)
  }
}
