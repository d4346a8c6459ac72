import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { HeldVersion } from 'ckpt/daemon/types'
import { readHeader } from 'ckpt/cli/checkpoint-files'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { shardsOf, type WrittenCheckpoint, writeIndex } from 'ckpt/cli/write-checkpoint'
import type { Library } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import type { Expected } from './engine.ts'
import { inThreads } from './file-threads.ts'
import type { Checked } from './measure.ts'
import { FileDigests, hex } from './pattern-file.ts'

const SHARD_BYTES_MAX = 2 ** 30

/** Where the files have each tensor. */
export type TensorRanges = ReadonlyMap<string, { path: string; offset: number; bytes: number }>

export interface BenchCheckpoint extends WrittenCheckpoint {
  readonly ranges: TensorRanges
}

/** Matrices of `matrixBytes`, a multiple of 2 KiB, each with a vector of 2 KiB: about `bytes` together. */
export function layersOf(bytes: number, matrixBytes = MIB): TensorShape[] {
  return Array.from({ length: bytes / matrixBytes }, (_, layer) => [
    { name: `layers.${layer}.norm.weight`, dtype: 'BF16', shape: [1024] },
    { name: `layers.${layer}.proj.weight`, dtype: 'BF16', shape: [matrixBytes / 2048, 1024] },
  ]).flat()
}

/** Writes two versions of a checkpoint, some files each, that differ in every tensor: what the one leaves does not pass for the other. */
export async function writeVersions(
  dir: string,
  tensors: readonly TensorShape[],
  bytes: number,
  files = 2,
): Promise<readonly [BenchCheckpoint, BenchCheckpoint]> {
  const write = async (seed: number): Promise<BenchCheckpoint> => {
    const versionDir = join(dir, `version-${seed}`)
    mkdirSync(versionDir, { recursive: true })
    const shardBytes = Math.min(SHARD_BYTES_MAX, Math.ceil(bytes / files))
    const shards = shardsOf(versionDir, tensors, shardBytes)
    await inThreads(shards.map((shard) => ({ type: 'write', shard, seed })))
    const written = await writeIndex(versionDir, shards)
    return { ...written, ranges: await rangesOf(written.files) }
  }
  return [await write(1), await write(2)]
}

/** What each of `ranks` tensor-parallel ranks must hold of these files, which are read again. */
export async function expectedOf(files: readonly string[], ranks: number): Promise<Expected> {
  const found = await inThreads(files.map((path) => ({ type: 'hash', path, ranks })))
  return new Map(found.flatMap((expected) => [...(expected ?? [])]))
}

async function rangesOf(files: readonly string[]): Promise<TensorRanges> {
  const ranges = new Map<string, { path: string; offset: number; bytes: number }>()
  for (const path of files) {
    const { tensors } = await readHeader(path)
    for (const { name, begin, bytes } of tensors) ranges.set(name, { path, offset: begin, bytes })
  }
  return ranges
}

/** Counts the tensors that a version in host memory does not hold as the files do. */
export function compareHeld(
  library: Library,
  version: HeldVersion,
  ranges: TensorRanges,
  digests: FileDigests,
): Checked {
  let right = 0
  for (const [row, name] of version.table.names.entries()) {
    const range = ranges.get(name)
    if (range !== undefined && isHeld(library, version, row, range, digests)) right++
  }
  const compared = Math.max(ranges.size, version.table.names.length)
  return { compared, wrong: compared - right }
}

/** A tensor may lie across several buffers; each part is hashed on its own. */
function isHeld(
  library: Library,
  { table, sources, buffers }: HeldVersion,
  row: number,
  range: { path: string; offset: number; bytes: number },
  digests: FileDigests,
): boolean {
  const owner = table.owners[row] ?? 0
  const source = sources[owner]
  if (source === undefined || table.bytes[row] !== range.bytes) return false
  for (let done = 0; done < range.bytes; ) {
    const at = (table.offsets[row] as number) + done
    const index = source.starts.findLastIndex((start) => start <= at)
    const into = at - (source.starts[index] ?? Number.NaN)
    const bytes = Math.min(range.bytes - done, (source.bytes[index] ?? 0) - into)
    const buffer = buffers[owner]?.[index]
    if (buffer === undefined || !(bytes > 0)) return false
    const held = hex(library.bufferSha256(buffer, into, bytes))
    if (held !== digests.sha256(range.path, range.offset + done, bytes)) return false
    done += bytes
  }
  return true
}
