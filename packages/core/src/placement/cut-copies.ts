import type { SourceSpace } from '../checkpoint/table.ts'
import { SourceMap } from '../plan/source-map.ts'
import type { DirectCopy } from './direct-copy.ts'

/** Copies are waited for in groups of about this size: what is on its way cannot be called back. */
export const GROUP_BYTES = 64 * 2 ** 20

/** Into copies that are no larger than a group. */
export function cutLarge(copies: readonly DirectCopy[]): readonly DirectCopy[] {
  return copies.flatMap((copy) => {
    const { width, height } = copy
    if (width * height <= GROUP_BYTES) return copy
    if (width > GROUP_BYTES)
      return singleRows(copy).flatMap((row) => cutAtMultiples(row, GROUP_BYTES))
    const rows = Math.floor(GROUP_BYTES / width)
    return Array.from({ length: Math.ceil(height / rows) }, (_, part) => ({
      ...copy,
      source: copy.source + part * rows * copy.sourcePitch,
      destination: copy.destination + part * rows * copy.destinationPitch,
      height: Math.min(rows, height - part * rows),
    }))
  })
}

function singleRows(copy: DirectCopy): DirectCopy[] {
  return Array.from({ length: copy.height }, (_, row) => {
    const source = copy.source + row * copy.sourcePitch
    const destination = copy.destination + row * copy.destinationPitch
    return { ...copy, source, destination, height: 1 }
  })
}

/** A single row at multiples of `bytes` in its owner's source space: of two ranks that need the same the parts are the same. */
export function cutAtMultiples(copy: DirectCopy, bytes: number): DirectCopy[] {
  const parts: DirectCopy[] = []
  for (let at = 0; at < copy.width; ) {
    const spare = bytes - ((copy.source + at) % bytes)
    const width = Math.min(spare, copy.width - at)
    const [source, destination] = [copy.source + at, copy.destination + at]
    const pitches = { sourcePitch: width, destinationPitch: width }
    parts.push({ ...copy, source, destination, width, ...pitches })
    at += width
  }
  return parts
}

/** A copy may not cross from one source buffer into the next: there it is cut, also within a row. */
export function cutAtBuffers(
  copies: readonly DirectCopy[],
  sources: readonly SourceSpace[],
): readonly DirectCopy[] {
  const maps = sources.map((space) => new SourceMap(space))
  return copies.flatMap((copy) => {
    const source = maps[copy.owner] as SourceMap
    const end = copy.source + (copy.height - 1) * copy.sourcePitch + copy.width
    return source.covers(copy.source, end) ? copy : cutRows(copy, source)
  })
}

function cutRows(copy: DirectCopy, map: SourceMap): DirectCopy[] {
  const parts: DirectCopy[] = []
  const { width, sourcePitch, destinationPitch } = copy
  for (let row = 0; row < copy.height; ) {
    const source = copy.source + row * sourcePitch
    const destination = copy.destination + row * destinationPitch
    const spareBytes = map.bufferEnd(source) - source - width
    const fitting = spareBytes < 0 ? 0 : 1 + Math.floor(spareBytes / sourcePitch)
    const height = Math.min(fitting, copy.height - row)
    if (height > 0) parts.push({ ...copy, source, destination, height })
    else parts.push(...cutOneRow({ ...copy, source, destination, height: 1 }, map))
    row += Math.max(1, height)
  }
  return parts
}

function cutOneRow(row: DirectCopy, map: SourceMap): DirectCopy[] {
  const parts: DirectCopy[] = []
  let { source, destination } = row
  const end = source + row.width
  while (source < end) {
    const width = Math.min(end, map.bufferEnd(source)) - source
    const pitches = { sourcePitch: width, destinationPitch: width }
    parts.push({ ...row, source, destination, width, ...pitches })
    source += width
    destination += width
  }
  return parts
}
