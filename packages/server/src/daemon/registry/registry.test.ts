import { describe, expect, test } from 'bun:test'
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  failure,
  pattern,
  requireHeld,
  safetensors,
  type TestTensors,
  u8,
  withRegistry,
} from './testing/fixture.ts'

const MIXED: TestTensors = {
  'layers.10.w': { dtype: 'BF16', shape: [3, 5], bytes: pattern(30, 1) },
  'layers.2.w': { dtype: 'F8_E4M3', shape: [7], bytes: pattern(7, 2) },
  'layers.2.scale': { dtype: 'F32', shape: [], bytes: pattern(4, 3) },
  'empty.w': { dtype: 'F32', shape: [0, 4], bytes: new Uint8Array() },
  packed: { dtype: 'F4', shape: [4, 6], bytes: pattern(12, 4) },
  large: u8(5 * 2 ** 20 + 3, 5),
}

describe('a registration', () => {
  test('holds every byte, in natural order', () =>
    withRegistry(async (registry, dir, library) => {
      const path = dir.write('a.safetensors', safetensors(MIXED))
      const answer = await registry.register('m', { files: [path], version: 'v1' }, null)
      expect(answer).toMatchObject({ name: 'm', version: 'v1', tensors: 6, bytes: 5_242_936 })
      const lease = registry.lease('m')
      requireHeld(library, lease.version, MIXED)
      expect(lease.version.table.names).toEqual([
        'empty.w',
        'large',
        'layers.2.scale',
        'layers.2.w',
        'layers.10.w',
        'packed',
      ])
      expect([...lease.version.table.offsets].every((offset) => offset % 256 === 0)).toBe(true)
      expect(lease.version.ownerRanks).toEqual([[0, 1]])
      expect(lease.version.files).toEqual([])
      lease.release(true)
    }))

  test('of several files, one of them named twice and through a link', () =>
    withRegistry(async (registry, dir, library) => {
      const a = { 'a.1': u8(1000, 1), 'a.2': u8(300, 2) }
      const b = { 'b.1': u8(77, 3) }
      const paths = [
        dir.write('a.safetensors', safetensors(a)),
        dir.write('b.safetensors', safetensors(b)),
      ]
      const link = join(dir.path, 'link.safetensors')
      symlinkSync(paths[0]!, link)
      const answer = await registry.register('m', { files: [...paths, paths[0]!, link] }, null)
      expect(answer).toMatchObject({ tensors: 3, bytes: 1377 })
      const lease = registry.lease('m')
      requireHeld(library, lease.version, { ...a, ...b })
      lease.release(false)
    }))

  test('keeps its bytes when the files are overwritten and deleted', () =>
    withRegistry(async (registry, dir, library) => {
      const tensors = { w: u8(3_000_000, 1), v: u8(10, 2) }
      const path = dir.write('a.safetensors', safetensors(tensors))
      const second = dir.write('b.safetensors', safetensors({ x: u8(2000, 7) }))
      await registry.register('m', { files: [path, second] }, null)
      writeFileSync(path, pattern(3_000_000, 9))
      rmSync(second)
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { ...tensors, x: u8(2000, 7) })
      await registry.check(version)
      release(true)
    }))

  test('of no files, of a file without tensors', () =>
    withRegistry(async (registry, dir) => {
      expect(await registry.register('none', { files: [] }, null)).toMatchObject({
        tensors: 0,
        bytes: 0,
      })
      const path = dir.write('a.safetensors', safetensors({}))
      await registry.register('empty', { files: [path] }, null)
      await failure(() => registry.lease('none'), 'checkpoint_empty', "'none'")
      await failure(() => registry.lease('empty'), 'checkpoint_empty', "'empty'")
      expect(registry.gather('none')).toMatchObject({ ranks: 2, tensors: 0, bytes: 0 })
      expect(registry.gather('unknown')).toMatchObject({ ranks: 2, tensors: 0, bytes: 0 })
    }))

  test('through an index: only what it maps, and what is missing is named', () =>
    withRegistry(async (registry, dir, library) => {
      const one = { 'a.w': u8(100, 1), stale: u8(50, 2) }
      const two = { 'b.w': u8(60, 3), 'a.w': u8(100, 9) }
      mkdirSync(join(dir.path, 'shards'))
      dir.write('one.safetensors', safetensors(one))
      dir.write('shards/two.safetensors', safetensors(two))
      const weightMap: Record<string, string> = {
        'a.w': 'one.safetensors',
        'b.w': 'shards/two.safetensors',
      }
      const index = (map: Record<string, string>) =>
        dir.write('model.safetensors.index.json', JSON.stringify({ weight_map: map }))
      await registry.register('m', { files: [index(weightMap)] }, null)
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { 'a.w': one['a.w'], 'b.w': two['b.w'] })
      release(false)
      const missingTensor = index({ ...weightMap, 'c.w': 'one.safetensors' })
      const error = await failure(
        () => registry.register('n', { files: [missingTensor] }, null),
        'tensor_missing',
        'one.safetensors',
        "'c.w'",
      )
      expect(error.failure.tensor).toBe('c.w')
      const missingShard = index({ ...weightMap, 'c.w': 'three.safetensors' })
      await failure(
        () => registry.register('n', { files: [missingShard] }, null),
        'file_not_found',
        'three.safetensors',
      )
    }))

  test('is listed, described and dropped', () =>
    withRegistry(async (registry, dir) => {
      const path = dir.write('a.safetensors', safetensors(MIXED))
      await registry.register('m', { files: [path], version: 'v1' }, null)
      const summary = {
        name: 'm',
        version: 'v1',
        state: 'complete' as const,
        tensors: 6,
        in_place: false,
        files: [path],
        in_use: false,
      }
      expect(registry.list()).toMatchObject([summary])
      expect(registry.describe('m')).toMatchObject(summary)
      expect(registry.describe('m').tensor_list[5]).toEqual({
        name: 'packed',
        dtype: 'F4',
        shape: [4, 6],
        bytes: 12,
      })
      expect(registry.gather('m').digest).toBe(registry.list()[0]!.digest)
      expect(await registry.drop('m', { force: false })).toEqual({ name: 'm', existed: true })
      expect(await registry.drop('m', { force: false })).toEqual({ name: 'm', existed: false })
      expect(registry.list()).toEqual([])
      await failure(() => registry.describe('m'), 'checkpoint_not_found', "'m'")
      await failure(() => registry.lease('m'), 'checkpoint_not_found', "'m'")
    }))

  test('the digest tells layouts apart, not contents', () =>
    withRegistry(async (registry, dir) => {
      const digest = async (name: string, tensors: TestTensors) => {
        const path = dir.write(`${name}.safetensors`, safetensors(tensors))
        await registry.register(name, { files: [path] }, null)
        return registry.gather(name).digest
      }
      const one = await digest('one', { w: u8(100, 1) })
      expect(await digest('two', { w: u8(100, 2) })).toBe(one)
      expect(await digest('three', { w: u8(101, 1) })).not.toBe(one)
    }))
})

describe('the same tensor in two files', () => {
  test('is held once when it agrees', () =>
    withRegistry(async (registry, dir, library) => {
      const a = { shared: u8(5000, 1), a: u8(10, 2) }
      const b = { b: u8(20, 3), shared: u8(5000, 1) }
      const files = [
        dir.write('a.safetensors', safetensors(a)),
        dir.write('b.safetensors', safetensors(b)),
      ]
      expect(await registry.register('m', { files }, null)).toMatchObject({
        tensors: 3,
        bytes: 5030,
      })
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { ...a, ...b })
      release(false)
    }))

  const tensor = { dtype: 'F16', shape: [4], bytes: pattern(8, 1) }
  const others = {
    contents: { ...tensor, bytes: pattern(8, 2) },
    shapes: { ...tensor, shape: [2, 2] },
    dtypes: { ...tensor, dtype: 'BF16' },
  }
  for (const [what, other] of Object.entries(others)) {
    test(`with other ${what} is refused, and both places are named`, () =>
      withRegistry(async (registry, dir, library) => {
        const before = library.liveObjects()
        const files = [
          dir.write('a.safetensors', safetensors({ w: tensor })),
          dir.write('b.safetensors', safetensors({ w: other })),
        ]
        const error = await failure(
          () => registry.register('m', { files }, null),
          'tensor_conflict',
          files[0]!,
          files[1]!,
          what,
        )
        expect(error.failure).toMatchObject({ tensor: 'w', phase: 'register' })
        expect(library.liveObjects()).toBe(before)
        expect(registry.list()).toEqual([])
      }))
  }
})
