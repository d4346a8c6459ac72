import type { SourceSpace, TensorTable } from '@ckpt/core/checkpoint/table'
import type { Handle, Library } from '@ckpt/cuda'
import type { SourceReading } from '../types.ts'
import type { ArenaBuffer } from './arena.ts'
import type { TensorPlace } from './same-tensor.ts'

/** A file held in place: leased, mapped and pinned. */
export interface MappedFile {
  readonly file: Handle
  readonly buffer: Handle
  readonly path: string
  readonly bytes: number
}

/** What one registration holds in the memory Worker. */
export interface Part {
  readonly table: TensorTable
  readonly source: SourceSpace
  /** Source buffers: `mapped`, then `arena`, then `shared`. */
  readonly mapped: readonly MappedFile[]
  readonly arena: readonly ArenaBuffer[]
  /** Written by a trainer; null: none. `name`: the checkpoint it writes. */
  readonly shared: { readonly name: string; readonly buffers: readonly ArenaBuffer[] } | null
  /** Per tensor of the table: where it came from, for messages. */
  readonly origins: readonly string[]
  /** How far its bytes are; null: all there. The ranks look at it, so it lives as long as the part. */
  readonly reading: SourceReading | null
}

/** Ends a read that still runs. Blocks until its threads have left. */
export function endReading(library: Library, { reading }: Part): void {
  if (reading !== null) library.readDestroy(reading.read)
}

export function partBuffers(part: Part): Uint32Array {
  return Uint32Array.from(
    [...part.mapped, ...part.arena, ...(part.shared?.buffers ?? [])].map(({ buffer }) => buffer),
  )
}

export function pinnedBytes(part: Part): number {
  let bytes = 0
  for (const buffer of part.mapped) bytes += buffer.bytes
  for (const buffer of part.arena) bytes += buffer.bytes
  for (const buffer of part.shared?.buffers ?? []) bytes += buffer.bytes
  return bytes
}

/** Row of each tensor name. */
export function rowsByName(table: TensorTable): ReadonlyMap<string, number> {
  return new Map(table.names.map((name, row) => [name, row]))
}

/** Tensor `row` of a part as bytes that can be compared. */
export function placeInPart(library: Library, part: Part, row: number): TensorPlace {
  const { table, source } = part
  const buffers = partBuffers(part)
  const begin = table.offsets[row]!
  const locate = (offset: number) => {
    const at = begin + offset
    let index = 0
    while (index + 1 < buffers.length && source.starts[index + 1]! <= at) index += 1
    return { buffer: buffers[index]!, at: at - source.starts[index]!, end: source.bytes[index]! }
  }
  return {
    label: part.origins[row]!,
    dtype: table.dtypes[row]!,
    shape: table.shapes[row]!,
    bytes: table.bytes[row]!,
    contiguous(offset) {
      const { at, end } = locate(offset)
      return end - at
    },
    sha256(offset, bytes) {
      const { buffer, at } = locate(offset)
      return library.bufferSha256(buffer, at, bytes)
    },
  }
}
