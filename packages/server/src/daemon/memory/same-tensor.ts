import { CkptError } from '@ckpt/core/api/errors'
import { DTYPES } from '@ckpt/core/safetensors/dtypes'
import { turn } from './turn.ts'

/** Where the bytes of a tensor are: a range of a file or of source buffers. */
export interface TensorPlace {
  /** For messages: the file, with the rank where there are several. */
  readonly label: string
  readonly dtype: number
  readonly shape: readonly number[]
  readonly bytes: number
  /** How many bytes from `offset` on one call of `sha256` can take. */
  contiguous(offset: number): number
  sha256(offset: number, bytes: number): Uint8Array
}

/** Hashing so much blocks the memory Worker for some 0.1 s. */
const STEP_BYTES = 64 * 2 ** 20

/**
 * Null when two places hold the same tensor, else what is different and where, as `tensor_conflict`. Contents are compared
 * by SHA-256.
 */
export async function tensorConflict(
  name: string,
  one: TensorPlace,
  other: TensorPlace,
): Promise<CkptError | null> {
  const difference = await findDifference(one, other)
  if (difference === null) return null
  return new CkptError(
    'tensor_conflict',
    `tensor '${name}' is in ${one.label} and in ${other.label} with different ${difference}`,
    { tensor: name },
  )
}

async function findDifference(one: TensorPlace, other: TensorPlace): Promise<string | null> {
  if (one.dtype !== other.dtype) {
    return `dtypes (${DTYPES[one.dtype]?.name}, ${DTYPES[other.dtype]?.name})`
  }
  if (!sameShape(one.shape, other.shape)) {
    return `shapes ([${one.shape.join(', ')}], [${other.shape.join(', ')}])`
  }
  for (let offset = 0; offset < one.bytes; ) {
    const bytes = Math.min(
      STEP_BYTES,
      one.bytes - offset,
      one.contiguous(offset),
      other.contiguous(offset),
    )
    if (!sameBytes(one.sha256(offset, bytes), other.sha256(offset, bytes))) return 'contents'
    offset += bytes
    await turn()
  }
  return null
}

function sameShape(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((size, index) => size === other[index])
}

function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, index) => byte === other[index])
}
