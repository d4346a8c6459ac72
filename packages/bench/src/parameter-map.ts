import {
  decodePlacementMap,
  encodePlacementMap,
  type MapCopy,
  type MapTensor,
  type PlacementMap,
} from '@ckpt/core'
import { dtypeIndex, torchView } from '@ckpt/core/safetensors/dtypes'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { GIB } from './bench.ts'
import { type EngineParameter, parameterBytes, type TensorPart } from './engine-parameters.ts'

/** As torch's caching allocator rounds (`kMinBlockSize`). */
const ALIGNMENT_BYTES = 512

/**
 * The placement map of these parameters, each at a multiple of 512 bytes, one behind another in allocations of at most
 * `allocationBytes`; a parameter that is larger has one of its own.
 */
export function parameterMap(
  tensors: readonly TensorShape[],
  parameters: readonly EngineParameter[],
  allocationBytes = GIB,
): PlacementMap {
  const ends: number[] = []
  const copies: MapCopy[] = []
  for (const parameter of parameters) {
    const bytes = parameterBytes(parameter)
    let destination = Math.ceil((ends.at(-1) ?? 0) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if (ends.length === 0 || destination + bytes > allocationBytes) {
      ends.push(0)
      destination = 0
    }
    const allocation = ends.length - 1
    ends[allocation] = destination + bytes
    for (const part of parameter.parts) {
      copies.push(copyOf(part, allocation, destination))
      destination += part.width * part.height
    }
  }
  return decodePlacementMap(encodePlacementMap(tensors.map(torchTensor), ends, copies))
}

function copyOf(part: TensorPart, allocation: number, destination: number): MapCopy {
  const { tensor, source, width, pitch, height } = part
  const strides = { sourceStrides: [0, 0, pitch], destinationStrides: [0, 0, width] }
  return { tensor, source, allocation, destination, run: width, sizes: [1, 1, height], ...strides }
}

function torchTensor({ name, dtype, shape }: TensorShape): MapTensor {
  const view = torchView(dtypeIndex(dtype), shape)
  if (view === null) throw new Error(`torch has no ${dtype} [${shape}]`)
  return { name, dtype: view.torch, shape: view.shape }
}
