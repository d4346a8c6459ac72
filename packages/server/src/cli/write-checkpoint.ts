import { basename, join } from 'node:path'
import type { TensorShape } from './model-shapes.ts'

export interface WrittenCheckpoint {
  readonly files: readonly string[]
  readonly tensors: number
  readonly bytes: number
}

/** A file of a checkpoint that is still to be written. */
export interface Shard {
  readonly path: string
  readonly tensors: readonly TensorShape[]
}

const BYTES_PER_ELEMENT: Readonly<Record<string, number>> = { BF16: 2, F16: 2, F32: 4, F8_E4M3: 1 }

/**
 * Writes a checkpoint of these tensors: shards of about `shardBytes` and `model.safetensors.index.json`, as Hugging Face lays
 * them out. The content follows from `seed` and the tensor's name alone and differs at every place, so that a byte in the
 * wrong place shows. Files of the same names are replaced.
 *
 * @param shardBytes a shard ends after the tensor that makes it this large; at most 2 GiB, a shard is built in memory
 */
export async function writeCheckpoint(
  directory: string,
  tensors: readonly TensorShape[],
  seed: number,
  shardBytes: number,
): Promise<WrittenCheckpoint> {
  const shards = shardsOf(directory, tensors, shardBytes)
  for (const shard of shards) await writeShard(shard, seed)
  return writeIndex(directory, shards)
}

/** The files that {@link writeCheckpoint} writes, so that several threads can write them. */
export function shardsOf(
  directory: string,
  tensors: readonly TensorShape[],
  shardBytes: number,
): Shard[] {
  const shards = cutShards(tensors, shardBytes)
  const count = String(shards.length).padStart(5, '0')
  return shards.map((shard, index) => {
    const number = String(index + 1).padStart(5, '0')
    return { path: join(directory, `model-${number}-of-${count}.safetensors`), tensors: shard }
  })
}

export async function writeShard({ path, tensors }: Shard, seed: number): Promise<void> {
  await Bun.write(path, shardContent(tensors, seed))
}

/** The index of files that were written, which completes the checkpoint. */
export async function writeIndex(
  directory: string,
  shards: readonly Shard[],
): Promise<WrittenCheckpoint> {
  const weightMap: Record<string, string> = {}
  for (const { path, tensors } of shards) {
    for (const { name } of tensors) weightMap[name] = basename(path)
  }
  const tensors = shards.flatMap((shard) => shard.tensors)
  const bytes = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0)
  const index = { metadata: { total_size: bytes }, weight_map: weightMap }
  await Bun.write(join(directory, 'model.safetensors.index.json'), JSON.stringify(index, null, 1))
  return { files: shards.map(({ path }) => path), tensors: tensors.length, bytes }
}

export function tensorBytes(tensor: TensorShape): number {
  const size = BYTES_PER_ELEMENT[tensor.dtype]
  if (size === undefined) throw new Error(`no generator for dtype ${tensor.dtype}`)
  return tensor.shape.reduce((product, dimension) => product * dimension, size)
}

function cutShards(tensors: readonly TensorShape[], shardBytes: number): TensorShape[][] {
  const shards: TensorShape[][] = []
  let left = 0
  for (const tensor of tensors) {
    if (left <= 0) {
      shards.push([])
      left = shardBytes
    }
    shards.at(-1)!.push(tensor)
    left -= tensorBytes(tensor)
  }
  return shards
}

function shardContent(shard: readonly TensorShape[], seed: number): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  let end = 0
  for (const tensor of shard) {
    const begin = end
    end += tensorBytes(tensor)
    header[tensor.name] = { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [begin, end] }
  }
  let json = JSON.stringify(header)
  // the data starts at a multiple of 8, and words are written
  json += ' '.repeat((8 - (json.length % 8)) % 8)
  const content = new Uint8Array(8 + json.length + Math.ceil(end / 4) * 4)
  new DataView(content.buffer).setBigUint64(0, BigInt(json.length), true)
  content.set(new TextEncoder().encode(json), 8)
  let offset = 8 + json.length
  for (const tensor of shard) {
    const bytes = tensorBytes(tensor)
    if (bytes % 4 !== 0) throw new Error(`${tensor.name} has ${bytes} bytes, not whole words`)
    fill(new Uint32Array(content.buffer, offset, bytes / 4), seedOf(tensor.name, seed))
    offset += bytes
  }
  return content.subarray(0, 8 + json.length + end)
}

/** Two bf16 numbers a word, of either sign and with magnitudes in [2^-7, 2): no NaN, no infinity. (xorshift32) */
function fill(words: Uint32Array, seed: number): void {
  let state = seed
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    words[i] = (state & 0x83ff83ff) | 0x3c003c00
  }
}

/** FNV-1a; never 0, where xorshift stays. */
function seedOf(name: string, seed: number): number {
  let hash = 0x811c9dc5 ^ seed
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193)
  return hash | 1
}
