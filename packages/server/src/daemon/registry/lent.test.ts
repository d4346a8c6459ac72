import { describe, expect, test } from 'bun:test'
import { closeSync, existsSync, openSync, writeSync } from 'node:fs'
import type { ErrorCode, TensorsRequest } from '@ckpt/core'
import { failure, pattern, requireHeld, safetensors, u8, withRegistry } from './testing/fixture.ts'
import type { Registry } from './registry.ts'

/** Writes as a trainer does: into the shared memory that it was given. */
function fill(path: string, offset: number, bytes: Uint8Array): void {
  const descriptor = openSync(path, 'r+')
  writeSync(descriptor, bytes, 0, bytes.length, offset)
  closeSync(descriptor)
}

type Tensor = TensorsRequest['buffers'][number]['tensors'][number]
const w: Tensor = { name: 'w', dtype: 'BF16', shape: [2, 4], offset: 0 }

async function trainOnce(registry: Registry, seed: number, bytes: number, replace: boolean) {
  const { buffers } = await registry.buffers('m', { bytes: [bytes] })
  fill(buffers[0]!.path, 0, pattern(bytes, seed))
  const tensors = [{ name: 'w', dtype: 'U8', shape: [bytes], offset: 0 }]
  return registry.tensors('m', { buffers: [{ id: buffers[0]!.id, tensors }], replace })
}

describe('tensors of a trainer', () => {
  test('are registered where it wrote them', () =>
    withRegistry(async (registry, _dir, library) => {
      const { buffers } = await registry.buffers('m', { bytes: [4096, 3_000_000] })
      expect(buffers.map(({ bytes }) => bytes)).toEqual([4096, 3_000_000])
      const [one, two] = buffers as [(typeof buffers)[0], (typeof buffers)[0]]
      expect(one.id).not.toBe(two.id)
      fill(one.path, 0, pattern(16, 1))
      fill(one.path, 256, pattern(8, 2))
      fill(two.path, 64, pattern(2_999_936, 3))
      const answer = await registry.tensors('m', {
        version: 'step 5',
        buffers: [
          {
            id: one.id,
            tensors: [w, { name: 'v', dtype: 'torch.float32', shape: [2], offset: 256 }],
          },
          { id: two.id, tensors: [{ name: 'u', dtype: 'U8', shape: [2_999_936], offset: 64 }] },
        ],
      })
      expect(answer).toMatchObject({ version: 'step 5', tensors: 3, bytes: 2_999_960 })
      const { version, release } = registry.lease('m')
      requireHeld(library, version, {
        w: { dtype: 'BF16', shape: [2, 4], bytes: pattern(16, 1) },
        v: { dtype: 'F32', shape: [2], bytes: pattern(8, 2) },
        u: u8(2_999_936, 3),
      })
      expect(registry.describe('m').tensor_list.map(({ dtype }) => dtype)).toEqual([
        'U8',
        'F32',
        'BF16',
      ])
      release(true)
      await registry.drop('m', { force: true })
      expect(registry.memory().pinned_bytes).toBe(0)
      expect(existsSync(one.path)).toBe(false)
    }))

  test(
    '50 versions do not grow, and each has its own bytes',
    () =>
      withRegistry(async (registry, _dir, library) => {
        const pinned: number[] = []
        for (let step = 0; step < 50; step++) {
          const bytes = 3_000_000 + step * 1000
          await trainOnce(registry, step, bytes, true)
          const { version, release } = registry.lease('m')
          requireHeld(library, version, { w: u8(bytes, step) })
          release(step % 2 === 0)
          pinned.push(registry.memory().pinned_bytes)
        }
        expect(Math.max(...pinned)).toBe(Math.max(...pinned.slice(0, 4)))
      }),
    20_000,
  )

  test('replace files and are replaced by files', () =>
    withRegistry(async (registry, dir, library) => {
      const path = dir.write('a.safetensors', safetensors({ w: u8(500, 1) }))
      await registry.register('m', { files: [path] }, null)
      await failure(() => trainOnce(registry, 2, 500, false), 'checkpoint_exists')
      await trainOnce(registry, 3, 500, true)
      const lease = registry.lease('m')
      await registry.register('m', { files: [path], replace: true }, null)
      requireHeld(library, lease.version, { w: u8(500, 3) })
      lease.release(true)
      const next = registry.lease('m')
      requireHeld(library, next.version, { w: u8(500, 1) })
      next.release(true)
    }))

  const refused: Record<string, [Tensor[], ErrorCode, string]> = {
    'an unknown dtype': [[{ ...w, dtype: 'F7' }], 'bad_request', "'F7'"],
    'an offset that is not aligned': [[{ ...w, offset: 3 }], 'bad_request', 'item size 2'],
    'an end beyond the buffer': [[{ ...w, offset: 4090 }], 'bad_request', 'beyond'],
    'an overlap': [[w, { ...w, name: 'v', offset: 14 }], 'bad_request', "'w' and 'v' overlap"],
    'half a byte': [[{ ...w, dtype: 'F4', shape: [3] }], 'bad_request', 'whole number of bytes'],
    'a name twice': [[w, { ...w, offset: 64 }], 'tensor_conflict', "'w' is in buffer"],
  }
  for (const [what, [tensors, code, words]] of Object.entries(refused)) {
    test(`with ${what} are refused`, () =>
      withRegistry(async (registry) => {
        const { buffers } = await registry.buffers('m', { bytes: [4096] })
        const { id } = buffers[0]!
        await failure(() => registry.tensors('m', { buffers: [{ id, tensors }] }), code, words)
        expect(registry.list()).toEqual([])
        // the buffer can still be used
        await registry.tensors('m', { buffers: [{ id, tensors: [w] }] })
      }))
  }

  test('a buffer belongs to one name, holds one version, and is known by its id only', () =>
    withRegistry(async (registry) => {
      const { buffers } = await registry.buffers('m', { bytes: [64] })
      const { id } = buffers[0]!
      const request = { buffers: [{ id, tensors: [w] }], replace: true }
      await failure(() => registry.tensors('other', request), 'bad_request', 'no buffer')
      await failure(
        () => registry.tensors('m', { buffers: [{ id: `${id}x`, tensors: [w] }] }),
        'bad_request',
        'no buffer',
      )
      const twice = { buffers: [request.buffers[0]!, request.buffers[0]!] }
      await failure(() => registry.tensors('m', twice), 'bad_request', 'twice')
      await registry.tensors('m', request)
      await failure(() => registry.tensors('m', request), 'checkpoint_busy', 'new buffers')
      await registry.drop('m', { force: false })
      await failure(() => registry.tensors('m', request), 'bad_request', 'no buffer')
    }))

  test('another trainer never gets memory that one has mapped', () =>
    withRegistry(async (registry) => {
      await trainOnce(registry, 1, 5000, false)
      await registry.drop('m', { force: false })
      const own = await registry.buffers('m', { bytes: [5000] })
      await registry.drop('m', { force: false })
      const others = await registry.buffers('n', { bytes: [5000] })
      expect(others.buffers[0]!.path).not.toBe(own.buffers[0]!.path)
    }))

  test('of a trainer that is gone are freed, unless they are registered', () =>
    withRegistry(async (registry) => {
      const { buffers } = await registry.buffers('m', { bytes: [4096, 8192] })
      const [one, two] = buffers as [(typeof buffers)[0], (typeof buffers)[0]]
      await registry.tensors('m', { buffers: [{ id: one.id, tensors: [w] }] })
      const others = (await registry.buffers('m', { bytes: [64] })).buffers[0]!
      const pinned = registry.memory().pinned_bytes
      await registry.abandon([one.id, two.id, 'unknown'])
      expect([one, two, others].map(({ path }) => existsSync(path))).toEqual([true, false, true])
      expect(registry.memory().pinned_bytes).toBeLessThan(pinned)
      registry.lease('m').release(true)
      const late = { buffers: [{ id: two.id, tensors: [w] }], replace: true }
      await failure(() => registry.tensors('m', late), 'bad_request', 'no buffer')
      const again = { buffers: [{ id: one.id, tensors: [w] }], replace: true }
      await failure(() => registry.tensors('m', again), 'checkpoint_busy', 'new buffers')
    }))

  test('a next version that does not fit beside the one held takes its place when it may', () =>
    withRegistry(
      async (registry, _dir, library) => {
        const bytes = 6 * 2 ** 20
        await trainOnce(registry, 1, bytes, false)
        await failure(
          () => registry.buffers('m', { bytes: [bytes] }),
          'host_memory_exhausted',
          'the budget',
        )
        const refused = { bytes: [1], replace: false }
        await failure(() => registry.buffers('m', refused), 'checkpoint_exists', "'m'")
        const held = registry.lease('m')
        const replace = { bytes: [bytes], replace: true }
        await failure(() => registry.buffers('m', replace), 'host_memory_exhausted', 'an update')
        held.release(false)
        const { buffers, previous_dropped } = await registry.buffers('m', replace)
        expect(previous_dropped).toBe(true)
        expect(registry.list()).toEqual([])
        fill(buffers[0]!.path, 0, pattern(bytes, 2))
        const tensors = [{ name: 'w', dtype: 'U8', shape: [bytes], offset: 0 }]
        await registry.tensors('m', { buffers: [{ id: buffers[0]!.id, tensors }] })
        const { version, release } = registry.lease('m')
        requireHeld(library, version, { w: u8(bytes, 2) })
        release(true)
      },
      { hostMemoryBytes: 10 * 2 ** 20 },
    ))

  test('buffers count in the budget, and dropping the name frees them', () =>
    withRegistry(
      async (registry) => {
        await registry.buffers('m', { bytes: [6 * 2 ** 20] })
        await failure(
          () => registry.buffers('n', { bytes: [6 * 2 ** 20] }),
          'host_memory_exhausted',
          "'m' lent to a trainer",
        )
        await registry.drop('m', { force: false })
        expect(registry.memory().pinned_bytes).toBe(0)
        await registry.buffers('n', { bytes: [6 * 2 ** 20] })
      },
      { hostMemoryBytes: 10 * 2 ** 20 },
    ))
})
