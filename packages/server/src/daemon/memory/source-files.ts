import { dirname, join } from 'node:path'
import { CkptError } from '@ckpt/core/api/errors'
import {
  HEADER_PREFIX_BYTES,
  type HeaderTensor,
  headerBytes,
  parseHeader,
} from '@ckpt/core/safetensors/header'
import { parseIndex } from '@ckpt/core/safetensors/index-file'
import type { Library } from '@ckpt/cuda'
import type { OpenedFile, PathGuard } from './path-guard.ts'
import { turn } from './turn.ts'

/** A safetensors file with the tensors that are wanted of it. */
export interface SourceFile extends OpenedFile {
  readonly tensors: readonly HeaderTensor[]
}

const INDEX_SUFFIX = '.index.json'
const INDEX_BYTES_MAX = 128 * 2 ** 20

/**
 * Opens every file and reads its header. An index file (`model.safetensors.index.json`) stands for its shards and decides
 * which tensors of which shard are wanted. A file that is named twice is opened once. `opened` gets each file as soon as
 * it is open: the caller closes them, also after an error.
 */
export async function openSourceFiles(
  library: Library,
  guard: PathGuard,
  paths: readonly string[],
  opened: OpenedFile[],
): Promise<SourceFile[]> {
  const files: SourceFile[] = []
  const seen = new Set<string>()
  for (const { path, wanted } of expandIndexes(library, guard, paths)) {
    const file = guard.open(library, path)
    opened.push(file)
    const identity = `${file.info.device}:${file.info.inode}`
    if (seen.has(identity)) continue
    seen.add(identity)
    files.push({ ...file, tensors: readTensors(library, file, wanted) })
    await turn()
  }
  return files
}

interface WantedFile {
  readonly path: string
  /** Names of tensors; null: all of them. */
  readonly wanted: ReadonlySet<string> | null
}

function expandIndexes(
  library: Library,
  guard: PathGuard,
  paths: readonly string[],
): readonly WantedFile[] {
  const shards = new Map<string, Set<string> | null>()
  for (const path of paths) {
    if (!path.endsWith(INDEX_SUFFIX)) continue
    for (const [tensor, shard] of readWeightMap(library, guard, path)) {
      const shardPath = join(dirname(path), shard)
      const wanted = shards.get(shardPath)
      if (wanted) wanted.add(tensor)
      else shards.set(shardPath, new Set([tensor]))
    }
  }
  for (const path of paths) {
    if (!path.endsWith(INDEX_SUFFIX) && !shards.has(path)) shards.set(path, null)
  }
  return [...shards].map(([path, wanted]) => ({ path, wanted }))
}

function readWeightMap(
  library: Library,
  guard: PathGuard,
  path: string,
): ReadonlyMap<string, string> {
  const { file, info } = guard.open(library, path)
  try {
    if (info.bytes > INDEX_BYTES_MAX) {
      throw new CkptError('safetensors_invalid', `${path}: ${info.bytes} bytes are no index`)
    }
    const text = new TextDecoder().decode(library.fileRead(file, 0, info.bytes))
    return parseIndex(text, path).weightMap
  } finally {
    library.fileClose(file)
  }
}

function readTensors(
  library: Library,
  { file, info, path }: OpenedFile,
  wanted: ReadonlySet<string> | null,
): readonly HeaderTensor[] {
  const prefix = library.fileRead(file, 0, Math.min(HEADER_PREFIX_BYTES, info.bytes))
  const jsonBytes = headerBytes(prefix, info.bytes, path)
  const json = library.fileRead(file, HEADER_PREFIX_BYTES, jsonBytes)
  const { tensors } = parseHeader(json, info.bytes, path)
  if (wanted === null) return tensors
  const found = tensors.filter(({ name }) => wanted.has(name))
  if (found.length < wanted.size) {
    const names = new Set(found.map(({ name }) => name))
    const [missing] = [...wanted].filter((name) => !names.has(name))
    throw new CkptError(
      'tensor_missing',
      `${path}: has no tensor '${missing}', which the index says it has`,
      { tensor: missing! },
    )
  }
  return found
}
