import { CkptError } from '../api/errors.ts'
import type { MapCopy, MapTensor } from './encode-map.ts'
import type { PlacementMap } from './placement-map.ts'

/** What a map is about: it may have a million rows itself. */
export interface MapSummary {
  readonly tensors: number
  readonly copies: number
  /** That all copies bring. */
  readonly bytes: number
  readonly allocationBytes: readonly number[]
}

/** One tensor of a map, with its rows. */
export interface TensorCopies extends MapTensor {
  readonly copies: readonly MapCopy[]
}

/** @throws CkptError `engine_protocol`: its copies bring more bytes than a number holds exactly */
export function summariseMap(map: PlacementMap): MapSummary {
  let bytes = 0
  for (let copy = 0; copy < map.run.length; copy++) {
    bytes += map.sizes.reduce(
      (product, sizes) => product * (sizes[copy] as number),
      map.run[copy] as number,
    )
  }
  // strides of 0 keep any size inside its allocation
  if (!Number.isSafeInteger(bytes)) {
    const message = 'the placement map of the engine brings more bytes than can be counted'
    throw new CkptError('engine_protocol', message)
  }
  const { tensors, run, allocationBytes } = map
  return { tensors: tensors.length, copies: run.length, bytes, allocationBytes }
}

/** Null: the map has no tensor of this name. One that the engine worker holds nothing of has no copies. */
export function tensorCopies(map: PlacementMap, name: string): TensorCopies | null {
  const tensor = map.tensors.indexOf(name)
  if (tensor === -1) return null
  const copies: MapCopy[] = []
  for (let copy = 0; copy < map.tensor.length; copy++) {
    if (map.tensor[copy] === tensor) copies.push(mapCopy(map, copy))
  }
  const dtype = map.dtypes[tensor] as string
  const shape = map.shapes[tensor] as readonly number[]
  return { name, dtype, shape, copies }
}

function mapCopy(map: PlacementMap, copy: number): MapCopy {
  const row = (columns: readonly Float64Array[]) => columns.map((column) => column[copy] as number)
  return {
    tensor: map.tensor[copy] as number,
    source: map.source[copy] as number,
    allocation: map.allocation[copy] as number,
    destination: map.destination[copy] as number,
    run: map.run[copy] as number,
    sizes: row(map.sizes),
    sourceStrides: row(map.sourceStrides),
    destinationStrides: row(map.destinationStrides),
  }
}
