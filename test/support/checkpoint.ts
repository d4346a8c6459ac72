/** A tiny safetensors writer, and the hashes that an engine must show for what was written. */
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'

export interface WrittenTensor {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

/** Bytes that differ for every (seed, index): a xorshift generator, so that runs repeat. */
function pseudoRandomBytes(length: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4))
  // never 0, where xorshift stays
  let state = seed >>> 0 || 1
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    words[i] = state
  }
  return new Uint8Array(words.buffer, 0, length)
}

/**
 * A tensor whose content follows from its name and the seed: tensors of one shape differ, so that one in another's place shows.
 */
export function randomTensor(
  seed: number,
  name: string,
  dtype: string,
  itemBytes: number,
  ...shape: number[]
): WrittenTensor {
  const length = shape.reduce((product, dimension) => product * dimension, itemBytes)
  const digest = createHash('sha256').update(`${seed} ${name}`).digest()
  return { name, dtype, shape, bytes: pseudoRandomBytes(length, digest.readUInt32LE(0)) }
}

export function writeSafetensors(path: string, tensors: readonly WrittenTensor[]): void {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  let offset = 0
  for (const { name, dtype, shape, bytes } of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] }
    offset += bytes.length
  }
  const text = JSON.stringify(header)
  const json = Buffer.from(text + ' '.repeat((8 - (Buffer.byteLength(text) % 8)) % 8))
  const prefix = new Uint8Array(8)
  new DataView(prefix.buffer).setBigUint64(0, BigInt(json.length), true)
  writeFileSync(path, Buffer.concat([prefix, json, ...tensors.map((t) => t.bytes)]))
}

export interface FileTensor {
  readonly dtype: string
  readonly shape: number[]
  readonly bytes: Uint8Array
}

/** Every tensor of some safetensors files by name, read independently of the program. */
export function readSafetensors(paths: readonly string[]): Map<string, FileTensor> {
  const tensors = new Map<string, FileTensor>()
  for (const path of paths) {
    const file = readFileSync(path)
    const headerBytes = Number(file.readBigUInt64LE(0))
    const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes))
    for (const [name, entry] of Object.entries<any>(header)) {
      if (name === '__metadata__') continue
      const [begin, end] = entry.data_offsets
      const bytes = file.subarray(8 + headerBytes + begin, 8 + headerBytes + end)
      tensors.set(name, { dtype: entry.dtype, shape: entry.shape, bytes })
    }
  }
  return tensors
}

export interface ShownTensor {
  dtype: string
  shape: number[]
  sha256: string
}

/** What rank `rank` of `size` tensor-parallel ranks must hold: rows of dimension 0 where `size` divides it. */
export function expectedShard(tensor: FileTensor, rank: number, size: number): ShownTensor {
  const rows = tensor.shape[0] ?? 0
  const sliced = rows > 0 && rows % size === 0 && size > 1
  const step = tensor.bytes.length / size
  const bytes = sliced ? tensor.bytes.subarray(rank * step, (rank + 1) * step) : tensor.bytes
  const shape = sliced ? [rows / size, ...tensor.shape.slice(1)] : [...tensor.shape]
  return { dtype: tensor.dtype, shape, sha256: createHash('sha256').update(bytes).digest('hex') }
}

/** Throws a readable difference between what the engine's ranks hold and what the files say. */
export function compareWeights(
  ranks: readonly { uuid: string; tensors: Record<string, ShownTensor> }[],
  files: ReadonlyMap<string, FileTensor>,
  tensorParallelSize: number,
): number {
  let compared = 0
  for (const [index, rank] of ranks.entries()) {
    const names = Object.keys(rank.tensors).sort()
    const wanted = [...files.keys()].sort()
    if (names.join('\n') !== wanted.join('\n')) {
      throw new Error(`rank ${index} holds ${names.length} tensors, the files ${wanted.length}`)
    }
    for (const [name, tensor] of files) {
      const expected = JSON.stringify(
        expectedShard(tensor, index % tensorParallelSize, tensorParallelSize),
      )
      const { dtype, shape, sha256 } = rank.tensors[name]!
      const shown = JSON.stringify({ dtype, shape, sha256 })
      if (shown !== expected) throw new Error(`rank ${index}, ${name}: ${shown} is not ${expected}`)
      compared++
    }
  }
  return compared
}
