import { type } from 'arktype'
import { COPY_DIMENSIONS } from '../placement/encode-map.ts'
import { Count, Path, Rank, Shape, TensorName, Url } from './bounds.ts'

/** Query of `GET /v1/engine-map`. */
export const EngineMapQuery = type({
  '+': 'reject',
  /** Any URL of the engine's server. */
  url: Url,
  /** Unix socket that the engine listens at. */
  'uds?': Path,
  /** Its copies are told too. */
  'tensor?': TensorName,
})
export type EngineMapQuery = typeof EngineMapQuery.infer

const Dimensions = Count.array().exactlyLength(COPY_DIMENSIONS)

/**
 * `run` bytes, and again for each index of the sizes, from `source` bytes into the tensor to
 * `destination` bytes into the allocation.
 */
export const PlacedCopy = type({
  source: Count,
  /** Index into the rank's allocations. */
  allocation: Count,
  destination: Count,
  run: Count,
  sizes: Dimensions,
  source_strides: Dimensions,
  destination_strides: Dimensions,
})
export type PlacedCopy = typeof PlacedCopy.infer

/** `GET /v1/engine-map`. */
export const EngineMapAnswer = type({
  /** As it was asked for. */
  url: 'string',
  /** Of the checkpoint; the dtype as an attribute of the module `torch`. */
  'tensor?': { name: 'string', dtype: 'string', shape: Shape },
  /** Those to which this engine's worker has sent a map. */
  ranks: type({
    rank: Rank,
    /** Of the map. */
    digest: 'string',
    tensors: Count,
    copies: Count,
    /** That the copies bring. */
    bytes: Count,
    /** Bytes of each. */
    allocations: Count.array(),
    /** Of the tensor that was asked for; empty where the rank holds none of it. */
    'placed?': PlacedCopy.array(),
  }).array(),
})
export type EngineMapAnswer = typeof EngineMapAnswer.infer
