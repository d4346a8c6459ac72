import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { type Scratch, scratch } from '../../../../test/support/process.ts'
import { findCheckpointFiles, readHeader } from './checkpoint-files.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

let dir: Scratch
beforeAll(() => {
  dir = scratch()
})
afterAll(() => dir.remove())

const TENSORS = ['w.2', 'w.10', 'w.1'].map((name) => ({ name, dtype: 'F32', shape: [2, 3] }))

/** Three shards of one tensor each, and their index. */
async function checkpoint() {
  const path = mkdtempSync(join(dir.path, 'model-'))
  const written = await writeCheckpoint(path, TENSORS, 1, 1)
  return { path, ...written }
}

async function failure(path: string) {
  const error = await findCheckpointFiles(path).then(
    () => null,
    (thrown: CkptError) => thrown,
  )
  expect(error).toBeInstanceOf(CkptError)
  return error!.failure
}

describe('with an index', () => {
  test('its shards are the files', async () => {
    const { path, files } = await checkpoint()
    writeFileSync(join(path, 'optimizer.safetensors'), 'not part of it')
    expect(await findCheckpointFiles(path)).toEqual({
      files: [...files],
      sources: [join(path, 'model.safetensors.index.json')],
    })
  })

  test('a missing shard is named, and a tensor that it held', async () => {
    const { path, files } = await checkpoint()
    rmSync(files[1]!)
    const { code, message, tensor } = await failure(path)
    expect({ code, tensor }).toEqual({ code: 'tensor_missing', tensor: 'w.10' })
    expect(message).toContain('model-00002-of-00003.safetensors is missing')
  })

  test('a tensor that its shard does not hold is named', async () => {
    const { path } = await checkpoint()
    const index = join(path, 'model.safetensors.index.json')
    const weight_map = {
      'w.2': 'model-00001-of-00003.safetensors',
      other: 'model-00001-of-00003.safetensors',
    }
    writeFileSync(index, JSON.stringify({ weight_map }))
    expect(await failure(path)).toMatchObject({ code: 'tensor_missing', tensor: 'other' })
  })
})

describe('without an index', () => {
  test('every safetensors file in natural order', async () => {
    const path = mkdtempSync(join(dir.path, 'plain-'))
    for (const name of ['m-10.safetensors', 'm-9.safetensors', 'config.json']) {
      writeFileSync(join(path, name), '')
    }
    const { files } = await findCheckpointFiles(path)
    expect(files).toEqual(['m-9.safetensors', 'm-10.safetensors'].map((name) => join(path, name)))
  })

  test('a directory without any says which format it has instead', async () => {
    const path = mkdtempSync(join(dir.path, 'torch-'))
    writeFileSync(join(path, 'pytorch_model.bin'), 'PK')
    const { code, message } = await failure(path)
    expect(code).toBe('file_not_found')
    expect(message).toContain('pytorch_model.bin')
  })
})

test('what is written is what the reader of headers reads', async () => {
  const { files, bytes } = await checkpoint()
  const headers = await Promise.all(files.map(readHeader))
  expect(headers.flatMap((h) => h.tensors.map((t) => [t.name, t.shape, t.bytes]))).toEqual([
    ['w.2', [2, 3], 24],
    ['w.10', [2, 3], 24],
    ['w.1', [2, 3], 24],
  ])
  expect(bytes).toBe(72)
})

test('another seed changes every tensor, the same seed none', async () => {
  const content = async (seed: number) => {
    const path = mkdtempSync(join(dir.path, 'seed-'))
    const { files } = await writeCheckpoint(path, TENSORS, seed, 1)
    return Promise.all(files.map(async (file) => (await Bun.file(file).bytes()).slice(-24).toHex()))
  }
  const [one, again, two] = [await content(1), await content(1), await content(2)]
  expect(one).toEqual(again)
  expect(new Set([...one, ...two]).size).toBe(6)
})
