import { tensorBytes } from '@ckpt/core/safetensors/dtypes'

/** The part of a tensor that one rank of the engine holds: a range of its rows, which are contiguous bytes. */
export interface Shard {
  readonly shape: readonly number[]
  /** Where the part begins in the whole tensor. */
  readonly offset: number
  readonly bytes: number
}

/**
 * What rank `rank` of `size` holds of a tensor: rows `[rank*d/size, (rank+1)*d/size)` of dimension 0 where `size` divides its
 * length d, else the whole tensor (also where the packed elements of such rows would not be whole bytes). Null when
 * the tensor itself is not whole bytes.
 */
export function shardOf(
  dtype: number,
  shape: readonly number[],
  rank: number,
  size: number,
): Shard | null {
  const bytes = tensorBytes(dtype, shape)
  if (bytes === null) return null
  const [rows, ...rest] = shape
  const whole = { shape, offset: 0, bytes }
  if (rows === undefined || rows % size !== 0) return whole
  const part = tensorBytes(dtype, [rows / size, ...rest])
  return part === null ? whole : { shape: [rows / size, ...rest], offset: rank * part, bytes: part }
}
