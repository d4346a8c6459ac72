import { assert } from './assert.ts'
import { Digest } from './digest.ts'
import { naturalOrder } from './natural-order.ts'
import type { SourceSpace, TensorTable } from './table.ts'

/** One tensor before it is a row of a table. */
export interface TensorRow {
  readonly name: string
  /** Index into `DTYPES`. */
  readonly dtype: number
  readonly shape: readonly number[]
  readonly bytes: number
  readonly owner: number
  /** Byte offset in the owner's source space. */
  readonly offset: number
}

/**
 * The rows as columns in natural order of the names, which must differ (`mergeRows` sees to it).
 */
export function buildTable(rows: readonly TensorRow[]): TensorTable {
  const count = rows.length
  const order = naturalOrder(rows.map((row) => row.name))
  const names: string[] = []
  const shapes: (readonly number[])[] = []
  const dtypes = new Uint8Array(count)
  const bytes = new Float64Array(count)
  const owners = new Uint32Array(count)
  const offsets = new Float64Array(count)
  for (let i = 0; i < count; i++) {
    const row = rows[order[i] as number] as TensorRow
    assert(i === 0 || row.name !== names[i - 1], `two rows are named '${row.name}'`)
    assert(Number.isSafeInteger(row.offset + row.bytes), `'${row.name}' is out of range`)
    names.push(row.name)
    shapes.push(row.shape)
    dtypes[i] = row.dtype
    bytes[i] = row.bytes
    owners[i] = row.owner
    offsets[i] = row.offset
  }
  return { names, dtypes, shapes, bytes, owners, offsets }
}

/** Adds names, dtypes and shapes: what an engine sees of a table. */
export function digestTensors(digest: Digest, table: TensorTable): void {
  digest.word(table.names.length)
  for (let i = 0; i < table.names.length; i++) {
    digest.string(table.names[i] as string)
    digest.numbers(table.shapes[i] as readonly number[])
  }
  digest.words(table.dtypes)
}

/**
 * 32 hex digits of all that a plan depends on in a checkpoint: names, dtypes, shapes, owners,
 * offsets and source buffers. Two versions with equal layout digests can use the same plan.
 */
export function layoutDigest(table: TensorTable, sources: readonly SourceSpace[]): string {
  const digest = new Digest()
  digestTensors(digest, table)
  digest.words(table.owners)
  digest.numbers(table.offsets)
  digest.word(sources.length)
  for (const source of sources) {
    digest.numbers(source.starts)
    digest.numbers(source.bytes)
  }
  return digest.hex()
}
