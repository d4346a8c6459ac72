import { describe, expect, test } from 'bun:test'
import { spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { ErrorCode } from '@ckpt/core'
import {
  failure,
  openFiles,
  pattern,
  rawSafetensors,
  safetensors,
  u8,
  withRegistry,
} from './testing/fixture.ts'

interface BadFile {
  readonly content: Uint8Array
  readonly code: ErrorCode
  readonly tensor?: string
  readonly words?: readonly string[]
  readonly name?: string
}

const entry = (shape: number[], begin: number, end: number, dtype = 'U8') => ({
  dtype,
  shape,
  data_offsets: [begin, end],
})
const json = (tensors: Record<string, unknown>) => JSON.stringify(tensors)

function hugeLength(bytes: bigint): Uint8Array {
  const content = new Uint8Array(64)
  new DataView(content.buffer).setBigUint64(0, bytes, true)
  return content
}

const INVALID = 'safetensors_invalid'
const BAD_FILES: Record<string, BadFile> = {
  'no bytes at all': { content: new Uint8Array(), code: INVALID },
  'five bytes': { content: pattern(5, 1), code: INVALID },
  'not safetensors': { content: pattern(5000, 1), code: INVALID },
  'a header larger than the file': { content: hugeLength(4096n), code: INVALID },
  'a header of 2^63 bytes': { content: hugeLength(2n ** 63n), code: INVALID },
  'overlapping offsets': {
    content: rawSafetensors(json({ a: entry([8], 0, 8), b: entry([8], 4, 12) }), pattern(12, 1)),
    code: INVALID,
    tensor: 'b',
    words: ['overlap'],
  },
  'offsets out of range': {
    content: rawSafetensors(json({ a: entry([80], 0, 80) }), pattern(12, 1)),
    code: INVALID,
    tensor: 'a',
    words: ['range'],
  },
  'a gap': {
    content: rawSafetensors(json({ a: entry([4], 0, 4), b: entry([4], 8, 12) }), pattern(12, 1)),
    code: INVALID,
    tensor: 'b',
  },
  'a shape that does not match': {
    content: rawSafetensors(json({ a: entry([3, 5], 0, 16) }), pattern(16, 1)),
    code: INVALID,
    tensor: 'a',
    words: ['15', '16'],
  },
  'the same name twice in one header': {
    content: rawSafetensors(
      `{"a":${json(entry([4], 0, 4))},"a":${json(entry([4], 4, 8))}}`,
      pattern(8, 1),
    ),
    code: INVALID,
    tensor: 'a',
    words: ['twice'],
  },
  'an unknown dtype': {
    content: rawSafetensors(json({ a: entry([4], 0, 4, 'F7_E9') }), pattern(4, 1)),
    code: INVALID,
    tensor: 'a',
    words: ['F7_E9'],
  },
  'a header of nonsense': { content: rawSafetensors('x'.repeat(1000)), code: INVALID },
  npy: {
    content: Buffer.concat([Buffer.from('\x93NUMPY', 'latin1'), pattern(200, 1)]),
    code: 'format_not_supported',
    name: 'weights.npy',
    words: ['safetensors'],
  },
  'a pickle of torch': {
    content: Buffer.concat([Buffer.from('PK\x03\x04'), pattern(200, 1)]),
    code: 'format_not_supported',
    name: 'pytorch_model.bin',
    words: ['safetensors'],
  },
}

describe('a bad file beside a good one leaves nothing', () => {
  for (const [what, bad] of Object.entries(BAD_FILES)) {
    test(what, () =>
      withRegistry(async (registry, dir, library) => {
        const good = dir.write('good.safetensors', safetensors({ g: u8(3_000_000, 1) }))
        const path = dir.write(bad.name ?? 'bad.safetensors', bad.content)
        // the library may open descriptors of its own once
        await registry.register('other', { files: [good] }, null)
        const before = [library.liveObjects(), openFiles(dir.path), registry.memory().pinned_bytes]
        const error = await failure(
          () => registry.register('m', { files: [good, path] }, null),
          bad.code,
          path,
          ...(bad.words ?? []),
        )
        expect(error.failure.phase).toBe('register')
        if (bad.tensor !== undefined) expect(error.failure.tensor).toBe(bad.tensor)
        const after = [library.liveObjects(), openFiles(dir.path), registry.memory().pinned_bytes]
        expect(after).toEqual(before)
        expect(registry.list().map(({ name }) => name)).toEqual(['other'])
      }),
    )
  }

  test(
    '100 MB of nonsense as a header',
    () =>
      withRegistry(async (registry, dir, library) => {
        const path = dir.write('bad.safetensors', rawSafetensors('{"a'.padEnd(99_999_999, 'ab')))
        const before = library.liveObjects()
        await failure(() => registry.register('m', { files: [path] }, null), INVALID, path)
        expect(library.liveObjects()).toBe(before)
        expect(registry.list()).toEqual([])
      }),
    20_000,
  )
})

describe('what is no regular file', () => {
  test('is missing, a directory, a FIFO, a device, a link to nothing, a relative path', () =>
    withRegistry(async (registry, dir) => {
      const register = (path: string) => () => registry.register('m', { files: [path] }, null)
      const missing = join(dir.path, 'missing.safetensors')
      await failure(register(missing), 'file_not_found', missing)
      mkdirSync(join(dir.path, 'sub.safetensors'))
      await failure(register(join(dir.path, 'sub.safetensors')), 'file_unreadable', 'directory')
      const fifo = join(dir.path, 'fifo.safetensors')
      expect(spawnSync('mkfifo', [fifo]).status).toBe(0)
      await failure(register(fifo), 'file_unreadable', fifo)
      await failure(register('/dev/zero'), 'file_unreadable', '/dev/zero')
      await failure(register('model.safetensors'), 'bad_request', 'absolute')
      await failure(register('/proc/self/mem\0x'), 'bad_request')
      expect(registry.list()).toEqual([])
    }))
})
