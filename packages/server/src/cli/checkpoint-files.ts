import { existsSync, readdirSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { CkptError, DTYPES } from '@ckpt/core'
import { naturalCompare } from '@ckpt/core/checkpoint/natural-order'
import {
  HEADER_PREFIX_BYTES,
  headerBytes,
  parseHeader,
  type SafetensorsHeader,
} from '@ckpt/core/safetensors/header'
import { parseIndex } from '@ckpt/core/safetensors/index-file'
import type { TensorShape } from './model-shapes.ts'

export interface CheckpointFiles {
  /** Absolute paths in natural order. */
  readonly files: readonly string[]
  /** What to register: the index, which decides which tensors of which files are loaded; without one, the files. */
  readonly sources: readonly string[]
}

const INDEX = 'model.safetensors.index.json'

/**
 * The files of a checkpoint directory: those that `model.safetensors.index.json` names, or every `*.safetensors`. With an
 * index each file's header is read, so that a missing shard or tensor is named before anything is loaded.
 *
 * @throws CkptError `file_not_found`, `tensor_missing`, `safetensors_invalid`, `format_not_supported`
 */
export async function findCheckpointFiles(path: string): Promise<CheckpointFiles> {
  const found = resolve(path)
  if (!existsSync(found))
    throw new CkptError('file_not_found', `there is no checkpoint at ${found}`)
  if (!statSync(found).isDirectory()) return { files: [found], sources: [found] }
  const index = join(found, INDEX)
  if (existsSync(index)) return fromIndex(found, index)
  const files = readdirSync(found)
    .filter((name) => name.endsWith('.safetensors'))
    .sort(naturalCompare)
    .map((name) => join(found, name))
  if (files.length === 0) throw new CkptError('file_not_found', nothingIn(found))
  return { files, sources: files }
}

function nothingIn(directory: string): string {
  const other = readdirSync(directory).find((name) =>
    /\.(bin|pt|pth|npy|npz|gguf|ckpt)$/.test(name),
  )
  const seen = other === undefined ? '' : `; ${other} is of a format that is not accepted`
  return `there is no *.safetensors file in ${directory}${seen}`
}

async function fromIndex(directory: string, index: string): Promise<CheckpointFiles> {
  const { weightMap } = parseIndex(await Bun.file(index).text(), index)
  const byShard = new Map<string, string[]>()
  for (const [tensor, shard] of weightMap) {
    const tensors = byShard.get(shard)
    if (tensors === undefined) byShard.set(shard, [tensor])
    else tensors.push(tensor)
  }
  const shards = [...byShard.keys()].sort(naturalCompare)
  for (const shard of shards) await checkShard(directory, shard, byShard.get(shard)!)
  return { files: shards.map((shard) => join(directory, shard)), sources: [index] }
}

async function checkShard(
  directory: string,
  shard: string,
  expected: readonly string[],
): Promise<void> {
  const path = join(directory, shard)
  if (!existsSync(path)) {
    const more = expected.length === 1 ? '' : ` and ${expected.length - 1} more`
    throw new CkptError(
      'tensor_missing',
      `${path} is missing: ${INDEX} says that it holds ${expected[0]}${more}`,
      {
        phase: 'register',
        tensor: expected[0]!,
      },
    )
  }
  const present = new Set((await readHeader(path)).tensors.map((tensor) => tensor.name))
  for (const tensor of expected) {
    if (present.has(tensor)) continue
    throw new CkptError('tensor_missing', `${path} does not hold ${tensor}, which ${INDEX} says`, {
      phase: 'register',
      tensor,
    })
  }
}

/** Of each tensor of a safetensors file what its header says, in that order. */
export async function readShapes(path: string): Promise<TensorShape[]> {
  const { tensors } = await readHeader(path)
  return tensors.map(({ name, dtype, shape }) => ({ name, dtype: DTYPES[dtype]!.name, shape }))
}

/** Reads the header of a safetensors file; the tensors' bytes are not touched. */
export async function readHeader(path: string): Promise<SafetensorsHeader> {
  const file = Bun.file(path)
  const fileBytes = file.size
  const prefix = await file.slice(0, HEADER_PREFIX_BYTES).bytes()
  const jsonBytes = headerBytes(prefix, fileBytes, path)
  const json = await file.slice(HEADER_PREFIX_BYTES, HEADER_PREFIX_BYTES + jsonBytes).bytes()
  return parseHeader(json, fileBytes, path)
}
