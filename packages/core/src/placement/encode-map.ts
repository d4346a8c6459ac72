// Without the schemas of the reader: the Worker of the reference engine that writes maps is to start soon.
import { packFrame } from './frame.ts'

/** Dimensions of a copy beside its run. */
export const COPY_DIMENSIONS = 3
/** Version of the form of a map; `ckpt_worker/placement.py` has the same. */
export const MAP_FORMAT = 2

const perDimension = (kind: string) =>
  Array.from({ length: COPY_DIMENSIONS }, (_, i) => `${kind}_${i}`)

/** Of a map's body, each of as many signed little-endian words of 64 bits as there are copies. */
export const MAP_COLUMNS: readonly string[] = [
  'tensor',
  'source',
  'allocation',
  'destination',
  'run',
  ...['size', 'source_stride', 'destination_stride'].flatMap(perDimension),
]

/** A tensor as torch sees it. */
export interface MapTensor {
  readonly name: string
  /** Attribute of the module `torch`. */
  readonly dtype: string
  readonly shape: readonly number[]
}

/** One row of a map; see `PlacementMap`. */
export interface MapCopy {
  /** Index into the tensors. */
  readonly tensor: number
  readonly source: number
  /** Index into the allocations. */
  readonly allocation: number
  readonly destination: number
  readonly run: number
  /** Of {@link COPY_DIMENSIONS} dimensions each. */
  readonly sizes: readonly number[]
  readonly sourceStrides: readonly number[]
  readonly destinationStrides: readonly number[]
}

/** Writes a map as `ckpt_worker/placement.py` does. Every number is a safe integer that is not negative. */
export function encodePlacementMap(
  tensors: readonly MapTensor[],
  allocationBytes: readonly number[],
  copies: readonly MapCopy[],
): Uint8Array {
  const head = {
    format: MAP_FORMAT,
    copies: copies.length,
    columns: MAP_COLUMNS,
    tensors: tensors.map(({ name }) => name),
    dtypes: tensors.map(({ dtype }) => dtype),
    shapes: tensors.map(({ shape }) => shape),
    allocation_bytes: allocationBytes,
  }
  const words = new BigInt64Array(MAP_COLUMNS.length * copies.length)
  for (const [row, copy] of copies.entries()) {
    const { tensor, source, allocation, destination, run } = copy
    const { sizes, sourceStrides, destinationStrides } = copy
    const values = [tensor, source, allocation, destination, run, ...sizes, ...sourceStrides]
    for (const [column, value] of [...values, ...destinationStrides].entries()) {
      words[column * copies.length + row] = BigInt(value)
    }
  }
  return packFrame(head, new Uint8Array(words.buffer))
}
