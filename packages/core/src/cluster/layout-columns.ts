import { CkptError } from '../api/errors.ts'
import { assert } from '../checkpoint/assert.ts'
import type { SourceSpace, TensorTable } from '../checkpoint/table.ts'
import { SourceMap } from '../plan/source-map.ts'
import { DTYPES, tensorBytes } from '../safetensors/dtypes.ts'

/** What one daemon holds of a checkpoint: its tensors, and the memory of its owners that they lie in. */
export interface HeldLayout {
  readonly table: TensorTable
  readonly sources: readonly SourceSpace[]
}

/** `ckL1`, little-endian. */
const MAGIC = 0x314c6b63
/** Magic, tensors, owners, dimensions of all tensors, buffers of all owners, bytes of the names. */
const HEAD_WORDS = 6
const HEAD_BYTES = HEAD_WORDS * 4

/** How many of what a layout has: the lengths of its columns. */
interface Counts {
  readonly tensors: number
  readonly owners: number
  readonly dimensions: number
  readonly buffers: number
  readonly nameBytes: number
}

/** Views of a layout's columns, the wide ones first so that all are aligned. */
class Columns {
  readonly offsets: Float64Array
  readonly dimensions: Float64Array
  readonly bufferStarts: Float64Array
  readonly bufferBytes: Float64Array
  readonly owners: Uint32Array
  /** UTF-16 units. */
  readonly nameLengths: Uint32Array
  readonly bufferCounts: Uint32Array
  readonly bufferNodes: Int32Array
  readonly dtypes: Uint8Array
  readonly dimensionCounts: Uint8Array
  /** UTF-8, one after another. */
  readonly names: Uint8Array

  constructor(body: Uint8Array, { tensors, owners, dimensions, buffers, nameBytes }: Counts) {
    const { buffer } = body
    let at = body.byteOffset + HEAD_BYTES
    const next = (bytes: number) => {
      at += bytes
      return at - bytes
    }
    this.offsets = new Float64Array(buffer, next(8 * tensors), tensors)
    this.dimensions = new Float64Array(buffer, next(8 * dimensions), dimensions)
    this.bufferStarts = new Float64Array(buffer, next(8 * buffers), buffers)
    this.bufferBytes = new Float64Array(buffer, next(8 * buffers), buffers)
    this.owners = new Uint32Array(buffer, next(4 * tensors), tensors)
    this.nameLengths = new Uint32Array(buffer, next(4 * tensors), tensors)
    this.bufferCounts = new Uint32Array(buffer, next(4 * owners), owners)
    this.bufferNodes = new Int32Array(buffer, next(4 * buffers), buffers)
    this.dtypes = new Uint8Array(buffer, next(tensors), tensors)
    this.dimensionCounts = new Uint8Array(buffer, next(tensors), tensors)
    this.names = new Uint8Array(buffer, next(nameBytes), nameBytes)
  }
}

function lengthOf({ tensors, owners, dimensions, buffers, nameBytes }: Counts): number {
  return HEAD_BYTES + 18 * tensors + 8 * dimensions + 20 * buffers + 4 * owners + nameBytes
}

/**
 * A layout as columns: 18 bytes a tensor beside its name and 8 a dimension. The bytes of a tensor follow from its dtype and shape.
 */
export function encodeLayout({ table, sources }: HeldLayout): Uint8Array {
  const { names, dtypes, shapes, owners, offsets } = table
  const text = names.join('')
  assert(text.isWellFormed(), 'a name is no Unicode text')
  const encoded = new TextEncoder().encode(text)
  const sum = (numbers: readonly number[]) => numbers.reduce((all, one) => all + one, 0)
  const counts: Counts = {
    tensors: names.length,
    owners: sources.length,
    dimensions: sum(shapes.map((shape) => shape.length)),
    buffers: sum(sources.map(({ starts }) => starts.length)),
    nameBytes: encoded.length,
  }
  const body = new Uint8Array(lengthOf(counts))
  const { tensors, dimensions, buffers, nameBytes } = counts
  const head = [MAGIC, tensors, counts.owners, dimensions, buffers, nameBytes]
  new Uint32Array(body.buffer, 0, HEAD_WORDS).set(head)
  const columns = new Columns(body, counts)
  columns.offsets.set(offsets)
  columns.owners.set(owners)
  columns.dtypes.set(dtypes)
  columns.names.set(encoded)
  columns.nameLengths.set(names.map((name) => name.length))
  columns.dimensionCounts.set(shapes.map((shape) => shape.length))
  let at = 0
  for (const shape of shapes) for (const size of shape) columns.dimensions[at++] = size
  fillSources(columns, sources)
  return body
}

function fillSources(columns: Columns, sources: readonly SourceSpace[]): void {
  let at = 0
  for (const [owner, { starts, bytes, nodes }] of sources.entries()) {
    columns.bufferCounts[owner] = starts.length
    columns.bufferStarts.set(starts, at)
    columns.bufferBytes.set(bytes, at)
    if (nodes === undefined) columns.bufferNodes.fill(-1, at, at + starts.length)
    else columns.bufferNodes.set(nodes, at)
    at += starts.length
  }
}

/**
 * What {@link encodeLayout} has made.
 *
 * @throws CkptError `bad_request`: it is none, or its tensors do not lie in its buffers
 */
export function decodeLayout(encoded: Uint8Array): HeldLayout {
  // a message may begin anywhere in its buffer
  const body = encoded.byteOffset % 8 === 0 ? encoded : encoded.slice()
  const counts = readCounts(body)
  const columns = new Columns(body, counts)
  const sources = readSources(columns, counts)
  const maps = sources.map((source) => new SourceMap(source))
  const names = readNames(columns)
  const shapes = readShapes(columns)
  const { tensors } = counts
  const bytes = new Float64Array(tensors)
  for (let i = 0; i < tensors; i++) {
    const dtype = columns.dtypes[i] as number
    const size = dtype < DTYPES.length ? tensorBytes(dtype, shapes[i] as number[]) : null
    if (size === null) throw refuse(`tensor ${names[i]} has no size`)
    bytes[i] = size
    const offset = columns.offsets[i] as number
    const map = maps[columns.owners[i] as number]
    const isOffset = Number.isSafeInteger(offset) && offset >= 0
    if (map === undefined || !isOffset || !map.holds(offset, offset + size)) {
      throw refuse(`tensor ${names[i]} lies in no buffer of its owner`)
    }
  }
  const { dtypes, owners, offsets } = columns
  return { table: { names, dtypes, shapes, bytes, owners, offsets }, sources }
}

function readCounts(body: Uint8Array): Counts {
  if (body.length < HEAD_BYTES) throw refuse('it is too short')
  const head = new Uint32Array(body.buffer, body.byteOffset, HEAD_WORDS)
  const [magic, tensors, owners, dimensions, buffers, nameBytes] = [...head] as [
    number,
    number,
    number,
    number,
    number,
    number,
  ]
  if (magic !== MAGIC) throw refuse('it is of another version')
  const counts = { tensors, owners, dimensions, buffers, nameBytes }
  const wanted = lengthOf(counts)
  if (body.length !== wanted) throw refuse(`it has ${body.length} bytes in place of ${wanted}`)
  return counts
}

function readSources(columns: Columns, { owners, buffers }: Counts): SourceSpace[] {
  const { bufferCounts, bufferStarts, bufferBytes, bufferNodes } = columns
  const sources: SourceSpace[] = []
  let at = 0
  for (let owner = 0; owner < owners; owner++) {
    const end = at + (bufferCounts[owner] as number)
    if (end > buffers) throw refuse(`owner ${owner} has more buffers than there are`)
    const starts = bufferStarts.slice(at, end)
    const bytes = bufferBytes.slice(at, end)
    let free = 0
    for (let k = 0; k < starts.length; k++) {
      const [start, size] = [starts[k] as number, bytes[k] as number]
      const holds = Number.isSafeInteger(start) && Number.isSafeInteger(start + size)
      if (!holds || start < free || size < 0) throw refuse(`buffer ${k} of owner ${owner} is none`)
      free = start + size
    }
    sources.push({ starts, bytes, nodes: bufferNodes.slice(at, end) })
    at = end
  }
  if (at !== buffers) throw refuse('buffers belong to nobody')
  return sources
}

function readNames({ names, nameLengths }: Columns): string[] {
  const text = decodeText(names)
  const all: string[] = []
  let at = 0
  for (let i = 0; i < nameLengths.length; i++) {
    const end = at + (nameLengths[i] as number)
    all.push(text.slice(at, end))
    at = end
  }
  if (at !== text.length) throw refuse('its names are cut')
  return all
}

function decodeText(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw refuse('its names are no UTF-8')
  }
}

function readShapes({ dimensions, dimensionCounts }: Columns): number[][] {
  const shapes: number[][] = []
  let at = 0
  for (let i = 0; i < dimensionCounts.length; i++) {
    const shape: number[] = []
    for (const end = at + (dimensionCounts[i] as number); at < end; at++) {
      const size = dimensions[at] ?? -1
      if (!Number.isSafeInteger(size) || size < 0) throw refuse('a dimension is no size')
      shape.push(size)
    }
    shapes.push(shape)
  }
  if (at !== dimensions.length) throw refuse('its dimensions are cut')
  return shapes
}

function refuse(why: string): CkptError {
  return new CkptError('bad_request', `the layout of a daemon cannot be read: ${why}`)
}
