import type { EngineWeights } from '@ckpt/core'
import { CkptError } from '@ckpt/core'
import { DTYPES } from '@ckpt/core/safetensors/dtypes'
import { readHeader } from './checkpoint-files.ts'

export interface Verified {
  /** Tensors compared, those of every rank counted. */
  readonly tensors: number
  /** Bytes compared in the engine, those of every rank counted. */
  readonly bytes: number
}

interface ExpectedTensor {
  readonly dtype: string
  /** Of one rank. */
  readonly shape: readonly number[]
  readonly bytes: number
  /** Hex, per rank. */
  readonly sha256: readonly string[]
}

/**
 * What each tensor-parallel rank must hold of these files: rows `[r*d/N, (r+1)*d/N)` of dimension 0 where N divides d, the
 * whole tensor otherwise. Files are read again here, independently of the daemon.
 */
export async function expectedTensors(
  files: readonly string[],
  tensorParallelSize: number,
): Promise<Map<string, ExpectedTensor>> {
  const expected = new Map<string, ExpectedTensor>()
  for (const path of files) {
    const header = await readHeader(path)
    const file = Bun.file(path)
    for (const { name, dtype, shape, begin, bytes } of header.tensors) {
      const content = await file.slice(begin, begin + bytes).bytes()
      const rows = shape[0] ?? 0
      const parts = rows > 0 && rows % tensorParallelSize === 0 ? tensorParallelSize : 1
      const step = bytes / parts
      const hashes = Array.from({ length: parts }, (_, part) =>
        sha256(content.subarray(part * step, (part + 1) * step)),
      )
      expected.set(name, {
        dtype: DTYPES[dtype]!.name,
        shape: parts === 1 ? shape : [rows / parts, ...shape.slice(1)],
        bytes: step,
        sha256: Array.from({ length: tensorParallelSize }, (_, rank) => hashes[rank % parts]!),
      })
    }
  }
  return expected
}

/**
 * Compares every tensor of every rank of a reference engine with the files.
 *
 * @throws CkptError `engine_failed` naming rank and tensor of the first difference
 */
export function verifyEngine(
  weights: EngineWeights,
  expected: ReadonlyMap<string, ExpectedTensor>,
  tensorParallelSize: number,
): Verified {
  const { ranks } = weights
  if (ranks.length !== tensorParallelSize) {
    throw differs(`the engine shows ${ranks.length} ranks, not ${tensorParallelSize}`)
  }
  let tensors = 0
  let bytes = 0
  for (const [rank, held] of ranks.entries()) {
    for (const name of Object.keys(held.tensors)) {
      if (!expected.has(name))
        throw differs(`rank ${rank} holds ${name}, which is in no file`, rank, name)
    }
    for (const [name, tensor] of expected) {
      const seen = held.tensors[name]
      if (seen === undefined) throw differs(`rank ${rank} does not hold ${name}`, rank, name)
      const wanted = `${tensor.dtype} [${tensor.shape}] ${tensor.sha256[rank]}`
      const shown = `${seen.dtype} [${seen.shape}] ${seen.sha256}`
      if (shown !== wanted)
        throw differs(`rank ${rank}, ${name}: ${shown}, the file has ${wanted}`, rank, name)
      tensors++
      bytes += tensor.bytes
    }
  }
  return { tensors, bytes }
}

function differs(message: string, rank?: number, tensor?: string): CkptError {
  return new CkptError('engine_failed', message, {
    ...(rank === undefined ? {} : { rank }),
    ...(tensor === undefined ? {} : { tensor }),
  })
}

function sha256(bytes: Uint8Array): string {
  return new Bun.CryptoHasher('sha256').update(bytes).digest('hex')
}
