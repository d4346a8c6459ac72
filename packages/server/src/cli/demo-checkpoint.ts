import { copyFileSync, mkdirSync, statfsSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { findCheckpointFiles, readHeader } from './checkpoint-files.ts'
import { modelTensors } from './model-shapes.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

/** The two versions of a checkpoint that the demo loads one after another. */
export interface DemoCheckpoint {
  /** Where the bytes come from, for people. */
  readonly text: string
  /** Both versions are the same files: the second update is real, but shows no change. */
  readonly sameFiles: boolean
  /** Makes version 1 or 2 and returns its files. Version 2 may overwrite the files of version 1. */
  version(number: 1 | 2): Promise<readonly string[]>
}

const SHARD_BYTES = 80_000_000
const COPY_BYTES_MAX = 2_000_000_000
const CHUNK_BYTES = 8 * 1024 * 1024

/** A generated model, or the user's, which is only read: its second version is a changed copy in `directory`. */
export async function demoCheckpoint(
  directory: string,
  checkpointPath: string | undefined,
): Promise<DemoCheckpoint> {
  if (checkpointPath === undefined) return generated(directory)
  const { files } = await findCheckpointFiles(checkpointPath)
  const bytes = files.reduce((sum, file) => sum + statSync(file).size, 0)
  const { bavail, bsize } = statfsSync(directory)
  if (bytes > COPY_BYTES_MAX || bytes > (bavail * bsize) / 2) {
    const why = `${checkpointPath}, the same files twice: they are too large to change a copy of them`
    return { text: why, sameFiles: true, version: async () => files }
  }
  return {
    text: `${checkpointPath}, then a copy with every byte changed`,
    sameFiles: false,
    version: async (number) => (number === 1 ? files : changedCopies(files, directory)),
  }
}

function generated(directory: string): DemoCheckpoint {
  const model = join(directory, 'model')
  mkdirSync(model)
  const tensors = modelTensors('small-llama')
  return {
    text: 'generated, with the tensor shapes of a small Llama',
    sameFiles: false,
    // the same paths again, as a trainer that saves every few minutes does
    version: async (number) => (await writeCheckpoint(model, tensors, number, SHARD_BYTES)).files,
  }
}

async function changedCopies(files: readonly string[], directory: string): Promise<string[]> {
  const copies: string[] = []
  for (const [index, file] of files.entries()) {
    const copy = join(directory, `${index}-${basename(file)}`)
    copyFileSync(file, copy)
    await invert(copy, (await readHeader(copy)).dataStart)
    copies.push(copy)
  }
  return copies
}

/** Inverts every bit of a file from `start` on. */
async function invert(path: string, start: number): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const { size } = await file.stat()
    const chunk = new Uint8Array(CHUNK_BYTES)
    for (let at = start; at < size; at += CHUNK_BYTES) {
      const { bytesRead } = await file.read(chunk, 0, CHUNK_BYTES, at)
      for (let i = 0; i < bytesRead; i++) chunk[i] = chunk[i]! ^ 0xff
      await file.write(chunk, 0, bytesRead, at)
    }
  } finally {
    await file.close()
  }
}
