import type { SourceSpace } from '@ckpt/core/checkpoint/table'

/** Index of the buffer of a source space that holds `[offset, offset + bytes)`; a copy never crosses buffers. */
export function bufferAt(source: SourceSpace, offset: number, bytes: number): number {
  const index = bufferFrom(source, offset)
  const start = source.starts[index] ?? Number.NaN
  const end = start + (source.bytes[index] ?? Number.NaN)
  if (!(offset >= start && offset + bytes <= end)) {
    throw new Error(`no source buffer holds bytes ${offset} to ${offset + bytes}`)
  }
  return index
}

/** Index of the last buffer of a source space that begins at `offset` or before; 0 where none does. */
export function bufferFrom({ starts }: SourceSpace, offset: number): number {
  let low = 0
  let high = starts.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if ((starts[middle] as number) <= offset) low = middle
    else high = middle - 1
  }
  return low
}
