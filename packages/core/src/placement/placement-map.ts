import { type } from 'arktype'
import { CkptError } from '../api/errors.ts'
import { COPY_DIMENSIONS, MAP_COLUMNS, MAP_FORMAT } from './encode-map.ts'
import { unpackFrame } from './frame.ts'

const HIGH_WORD = 2 ** 32

const Head = type({
  '+': 'reject',
  format: type.unit(MAP_FORMAT),
  copies: 'number.integer >= 0',
  columns: 'string[]',
  tensors: 'string[]',
  dtypes: 'string[]',
  shapes: '(number.integer >= 0)[][]',
  allocation_bytes: '(number.integer > 0)[]',
})

/**
 * Where the bytes of a checkpoint's tensors belong in the memory of one engine worker, as `ckpt_worker/placement.py` writes it.
 * Row `i` of the columns is one copy: `run[i]` bytes, and again for each index of three sizes, from `source` bytes into the
 * tensor to `destination` bytes into the allocation. The worker sees to it that no byte is written twice.
 */
export interface PlacementMap {
  readonly tensors: readonly string[]
  /** Of each tensor: attribute of the module `torch`. */
  readonly dtypes: readonly string[]
  /** Of each tensor, as torch sees it. */
  readonly shapes: readonly (readonly number[])[]
  readonly allocationBytes: readonly number[]
  readonly tensor: Float64Array
  readonly source: Float64Array
  readonly allocation: Float64Array
  readonly destination: Float64Array
  readonly run: Float64Array
  /** One column for each of {@link COPY_DIMENSIONS}; 1 and strides 0 where there is no such dimension. */
  readonly sizes: readonly Float64Array[]
  readonly sourceStrides: readonly Float64Array[]
  readonly destinationStrides: readonly Float64Array[]
}

/**
 * Reads a map out of a worker's message.
 *
 * @throws CkptError `engine_protocol`: it is none, or names memory outside its allocations
 */
export function decodePlacementMap(body: Uint8Array): PlacementMap {
  const frame = unpackFrame(body)
  if (frame === null) throw wrong('it is cut off, or its head is no JSON')
  const head = readHead(frame.head)
  const { copies } = head
  const columns = frame.body
  if (columns.length !== copies * MAP_COLUMNS.length * 8) throw wrong('it is cut off')
  const view = new DataView(columns.buffer, columns.byteOffset, columns.byteLength)
  const column = (index: number) => readColumn(view, index * copies * 8, copies)
  const three = (first: number) => [column(first), column(first + 1), column(first + 2)]
  const map: PlacementMap = {
    tensors: head.tensors,
    dtypes: head.dtypes,
    shapes: head.shapes,
    allocationBytes: head.allocation_bytes,
    tensor: column(0),
    source: column(1),
    allocation: column(2),
    destination: column(3),
    run: column(4),
    sizes: three(5),
    sourceStrides: three(8),
    destinationStrides: three(11),
  }
  for (let copy = 0; copy < copies; copy++) checkCopy(map, copy)
  return map
}

function readHead(json: unknown) {
  const head = Head(json)
  if (head instanceof type.errors) throw wrong(head.summary)
  if (head.columns.join() !== MAP_COLUMNS.join()) throw wrong('it has other columns')
  const { tensors, dtypes, shapes } = head
  if (new Set(tensors).size !== tensors.length) throw wrong('a tensor is named twice')
  if (dtypes.length !== tensors.length || shapes.length !== tensors.length) {
    throw wrong('not every tensor has a dtype and a shape')
  }
  return head
}

/** Signed little-endian words of 64 bits; none may be negative or beyond what a number holds exactly. */
function readColumn(view: DataView, start: number, count: number): Float64Array {
  const values = new Float64Array(count)
  for (let i = 0; i < count; i++) {
    const high = view.getInt32(start + i * 8 + 4, true)
    const value = high * HIGH_WORD + view.getUint32(start + i * 8, true)
    if (high < 0 || !Number.isSafeInteger(value))
      throw wrong(`a number of copy ${i} is out of range`)
    values[i] = value
  }
  return values
}

function checkCopy(map: PlacementMap, copy: number): void {
  const allocationBytes = map.allocationBytes[map.allocation[copy] as number]
  if (allocationBytes === undefined) throw wrong(`copy ${copy} names no allocation`)
  if ((map.tensor[copy] as number) >= map.tensors.length)
    throw wrong(`copy ${copy} names no tensor`)
  if (map.run[copy] === 0 || map.sizes.some((sizes) => sizes[copy] === 0)) {
    throw wrong(`copy ${copy} is empty`)
  }
  const end = copyEnd(map, copy, map.destination, map.destinationStrides)
  if (end > allocationBytes) throw wrong(`copy ${copy} goes beyond its allocation`)
  const bytes = map.sizes.reduce(
    (product, sizes) => product * (sizes[copy] as number),
    map.run[copy] as number,
  )
  if (bytes > end - (map.destination[copy] as number)) {
    throw wrong(`copy ${copy} writes a byte twice`)
  }
}

/** Behind the last byte of one side of a copy. */
export function copyEnd(
  map: PlacementMap,
  copy: number,
  begin: Float64Array,
  strides: readonly Float64Array[],
): number {
  let end = (begin[copy] as number) + (map.run[copy] as number)
  for (let d = 0; d < COPY_DIMENSIONS; d++) {
    end += ((map.sizes[d]?.[copy] as number) - 1) * (strides[d]?.[copy] as number)
  }
  return end
}

function wrong(what: string): CkptError {
  return new CkptError('engine_protocol', `the placement map of the engine cannot be used: ${what}`)
}
