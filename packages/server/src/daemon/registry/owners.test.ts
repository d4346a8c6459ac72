import { describe, expect, test } from 'bun:test'
import { Metas } from '@ckpt/core'
import {
  failure,
  pattern,
  requireHeld,
  safetensors,
  type TestDir,
  type TestTensors,
  u8,
  withRegistry,
} from './testing/fixture.ts'
import type { Registry } from './registry.ts'

let files = 0

function registerAs(registry: Registry, dir: TestDir) {
  return (owner: number | null, tensors: TestTensors, replace = false, version?: string) => {
    const path = dir.write(`${files++}.safetensors`, safetensors(tensors))
    return registry.register('m', { files: [path], replace, version }, owner)
  }
}

describe('rank sockets', () => {
  test('files of each rank make one checkpoint', () =>
    withRegistry(async (registry, dir, library) => {
      const register = registerAs(registry, dir)
      const one = { 'l.10': u8(700, 1), shared: u8(5000, 9) }
      const zero = { 'l.2': u8(900, 2), shared: u8(5000, 9) }
      await register(1, one, false, 'v1')
      await register(0, zero, false, 'v1')
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { ...one, ...zero })
      expect(version.table.names).toEqual(['l.2', 'l.10', 'shared'])
      expect(version.ownerRanks).toEqual([[0], [1]])
      expect([...version.table.owners]).toEqual([0, 1, 0])
      expect(version.version).toBe('v1')
      release(true)
      expect(registry.gather('m')).toMatchObject({ ranks: 2, tensors: 3, bytes: 6600 })
    }))

  test('a rank without files counts, and its name is held too', () =>
    withRegistry(async (registry, dir, library) => {
      const register = registerAs(registry, dir)
      await registry.register('m', { files: [] }, 0)
      await register(1, { w: u8(10, 1) })
      await failure(() => register(0, { v: u8(10, 1) }), 'checkpoint_exists')
      await failure(() => register(null, { v: u8(10, 1) }), 'checkpoint_exists')
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { w: u8(10, 1) })
      release(true)
    }))

  test('the same tensor on two ranks with other contents is refused', () =>
    withRegistry(async (registry, dir, library) => {
      const register = registerAs(registry, dir)
      await register(0, { w: u8(3000, 1) })
      const before = [library.liveObjects(), registry.memory().pinned_bytes]
      await failure(
        () => register(1, { v: u8(3_000_000, 1), w: u8(3000, 2) }),
        'tensor_conflict',
        "'w'",
        '(rank 0)',
        '(rank 1)',
        'contents',
      )
      await failure(() => register(1, { w: u8(3001, 1) }), 'tensor_conflict', 'shapes')
      expect([library.liveObjects(), registry.memory().pinned_bytes]).toEqual(before)
      await register(1, { w: u8(3000, 1) })
      registry.lease('m').release(true)
    }))

  test('a tensor that lies across two source buffers is compared to its end', () =>
    withRegistry(async (registry, dir) => {
      const MIB = 2 ** 20
      const path = dir.write('x.safetensors', safetensors({ x: u8(4 * MIB, 1) }))
      for (const name of ['x', 'y']) await registry.register(name, { files: [path] }, null)
      for (const name of ['x', 'y']) await registry.drop(name, { force: false })
      const register = registerAs(registry, dir)
      const w = pattern(7 * MIB, 1)
      await register(0, { w: { dtype: 'U8', shape: [7 * MIB], bytes: w } })
      const lease = registry.lease('m')
      expect(lease.version.buffers[0]!.length).toBe(2)
      lease.release(false)
      const other = w.slice()
      other[6 * MIB]! ^= 1
      await failure(
        () => register(1, { w: { dtype: 'U8', shape: [7 * MIB], bytes: other } }),
        'tensor_conflict',
      )
      await register(1, { w: { dtype: 'U8', shape: [7 * MIB], bytes: w } })
    }))

  test('with replace a tensor may differ until every rank has brought its version', () =>
    withRegistry(async (registry, dir, library) => {
      const register = registerAs(registry, dir)
      for (const version of [1, 2]) {
        await register(0, { w: u8(3000, version), a: u8(10, version) }, true, `v${version}`)
        if (version === 2) {
          await failure(() => registry.lease('m'), 'tensor_conflict', '(rank 0)', '(rank 1)')
          await failure(() => registry.gather('m'), 'tensor_conflict', "'w'")
        }
        await register(1, { w: u8(3000, version), b: u8(10, version) }, true, `v${version}`)
        const { version: held, release } = registry.lease('m')
        expect(held.version).toBe(`v${version}`)
        requireHeld(library, held, {
          w: u8(3000, version),
          a: u8(10, version),
          b: u8(10, version),
        })
        release(true)
      }
    }))

  test('a running update keeps the parts it has; the next one takes the new part of one rank', () =>
    withRegistry(async (registry, dir, library) => {
      const register = registerAs(registry, dir)
      await register(0, { a: u8(3_000_000, 1) }, true)
      await register(1, { b: u8(3_000_000, 2) }, true)
      const running = registry.lease('m')
      await register(1, { b: u8(3_000_000, 3) }, true)
      requireHeld(library, running.version, { a: u8(3_000_000, 1), b: u8(3_000_000, 2) })
      const next = registry.lease('m')
      requireHeld(library, next.version, { a: u8(3_000_000, 1), b: u8(3_000_000, 3) })
      running.release(true)
      next.release(true)
      await registry.drop('none', { force: true })
      expect(registry.memory().pinned_bytes).toBe(8 * 2 ** 20)
    }))

  test('the daemon as a whole replaces what ranks have registered, and the other way round', () =>
    withRegistry(async (registry, dir, library) => {
      const register = registerAs(registry, dir)
      await register(0, { a: u8(100, 1) })
      await register(1, { b: u8(100, 2) })
      await register(null, { a: u8(100, 3) }, true)
      const whole = registry.lease('m')
      requireHeld(library, whole.version, { a: u8(100, 3) })
      expect(whole.version.ownerRanks).toEqual([[0, 1]])
      whole.release(true)
      await register(1, { b: u8(100, 4) }, true)
      const ranks = registry.lease('m')
      requireHeld(library, ranks.version, { b: u8(100, 4) })
      ranks.release(true)
    }))
})

describe('metas', () => {
  test('are those of checkpoint-engine 0.4.2, and load again', () =>
    withRegistry(async (registry, dir) => {
      expect(registry.metas()).toEqual({})
      const register = registerAs(registry, dir)
      await register(0, { w: { dtype: 'BF16', shape: [3, 50], bytes: pattern(300, 1) } })
      await register(1, { v: { dtype: 'F8_E4M3', shape: [256], bytes: pattern(256, 1) } })
      registry.gather('m')
      const metas = registry.metas()
      expect(metas).toMatchObject({
        0: {
          memory_buffer_metas_list: [
            {
              metas: [{ name: 'w', dtype: 'torch.bfloat16', shape: [3, 50], aligned_size: 512 }],
              ptr: 0,
              size: 512,
            },
          ],
          p2p_store_addr: null,
          rdma_device: '',
        },
        1: {
          memory_buffer_metas_list: [
            { metas: [{ name: 'v', dtype: 'torch.float8_e4m3fn', aligned_size: 256 }], size: 256 },
          ],
        },
      })
      expect(Metas.assert(JSON.parse(JSON.stringify(metas)))).toEqual(metas)
      registry.loadMetas(metas)
      expect(registry.metas()).toEqual(metas)
    }))

  test('adjacent tensors are one memory buffer whose sizes add up', () =>
    withRegistry(async (registry, dir) => {
      await registerAs(registry, dir)(null, { a: u8(1, 1), b: u8(300, 2), c: u8(256, 3) })
      registry.gather('m')
      const [run, ...more] = registry.metas()['0']!.memory_buffer_metas_list
      expect(more).toEqual([])
      expect(run!.metas.map(({ aligned_size }) => aligned_size)).toEqual([256, 512, 256])
      expect(run!.size).toBe(1024)
    }))

  test('of owners that only Mooncake can read are refused by name', () =>
    withRegistry(async (registry) => {
      const owner = { memory_buffer_metas_list: [], rdma_device: 'mlx5_0' }
      const error = await failure(
        () =>
          registry.loadMetas({
            0: { ...owner, p2p_store_addr: null },
            3: { ...owner, p2p_store_addr: '10.0.0.7:15428' },
          }),
        'not_supported',
        '10.0.0.7:15428',
        'Mooncake',
      )
      expect(error.failure.rank).toBe(3)
      expect(registry.metas()).toEqual({})
    }))

  test('an update of what only loaded metas know is not supported, and says so', () =>
    withRegistry(async (registry, dir) => {
      const metas = { 5: { memory_buffer_metas_list: [], p2p_store_addr: null, rdma_device: '' } }
      registry.loadMetas(metas)
      await failure(() => registry.lease('m'), 'not_supported', "'m'", '5')
      await registerAs(registry, dir)(null, { w: u8(10, 1) })
      registry.lease('m').release(true)
    }))
})
