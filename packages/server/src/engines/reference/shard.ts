import { tensorBytes } from '@ckpt/core/safetensors/dtypes'

/**
 * What the ranks of an engine split its tensors by: `rows` dimension 0, `columns` dimension 1, `mixed` as models do it, columns of
 * what {@link COLUMNS_OF} names and rows of the others; `experts`: expert K is whole on rank K modulo the size and on no other,
 * all else is `mixed`.
 */
export const SHARDED_BY = ['rows', 'columns', 'mixed', 'experts'] as const

export type ShardedBy = (typeof SHARDED_BY)[number]

/** Projections back to the hidden size: what comes before them was split by rows. */
const COLUMNS_OF = /(^|\.)(o_proj|down_proj|w2)(\.|$)/

/** The number of a tensor's expert. */
const EXPERT = /(?:^|\.)experts\.(\d+)\./

/** Which part of every tensor a rank holds. */
export interface Sharding {
  readonly by: ShardedBy
  readonly rank: number
  /** Tensor-parallel size. */
  readonly size: number
}

/** A tensor of a list or a checkpoint. */
export interface ShardedTensor {
  readonly name: string
  /** Index into DTYPES. */
  readonly dtype: number
  readonly shape: readonly number[]
}

/** The part of a tensor that one rank of the engine holds: `height` runs of `width` bytes, one behind another in the engine. */
export interface Shard {
  readonly shape: readonly number[]
  /** Where the part begins in the whole tensor. */
  readonly offset: number
  readonly width: number
  /** From one run to the next in the whole tensor. */
  readonly pitch: number
  readonly height: number
  readonly bytes: number
}

/**
 * Of an expert of another rank nothing. Of a dimension of length d that the size divides, elements `[rank*d/size, (rank+1)*d/size)`; the whole tensor where the size does
 * not divide it, it has no such dimension, or the packed elements of such a part would not be whole bytes. Null when the
 * tensor itself is not whole bytes.
 */
export function shardOf(tensor: ShardedTensor, { by, rank, size }: Sharding): Shard | null {
  const { name, dtype, shape } = tensor
  const bytes = tensorBytes(dtype, shape)
  if (bytes === null) return null
  const whole = { shape, offset: 0, width: bytes, pitch: bytes, height: 1, bytes }
  const expert = by === 'experts' ? EXPERT.exec(name)?.[1] : undefined
  if (expert !== undefined) return Number(expert) % size === rank ? whole : nothingOf(shape)
  const isProjectedBack = (by === 'mixed' || by === 'experts') && COLUMNS_OF.test(name)
  const dimension = by === 'columns' || isProjectedBack ? 1 : 0
  const length = shape[dimension]
  if (length === undefined || length % size !== 0) return whole
  const inner = shape.slice(dimension + 1)
  const width = tensorBytes(dtype, [length / size, ...inner])
  const pitch = tensorBytes(dtype, [length, ...inner])
  if (width === null || pitch === null) return whole
  const height = dimension === 0 ? 1 : (shape[0] as number)
  return {
    shape: shape.with(dimension, length / size),
    offset: rank * width,
    width,
    pitch,
    height,
    bytes: width * height,
  }
}

function nothingOf(shape: readonly number[]): Shard {
  return { shape: [0, ...shape.slice(1)], offset: 0, width: 0, pitch: 0, height: 0, bytes: 0 }
}
