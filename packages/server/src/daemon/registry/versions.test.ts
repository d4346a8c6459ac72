import { describe, expect, test } from 'bun:test'
import type { CkptError } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'
import {
  daemonOptions,
  failure,
  LIBRARY,
  openFiles,
  requireHeld,
  safetensors,
  TestDir,
  type TestTensors,
  u8,
  withRegistry,
} from './testing/fixture.ts'
import { createRegistry } from './held.ts'
import type { Registry } from './registry.ts'

const MIB = 2 ** 20

function writer(registry: Registry, dir: TestDir) {
  return (name: string, tensors: TestTensors, replace: boolean, version?: string) => {
    const path = dir.write(`${name}.safetensors`, safetensors(tensors))
    return registry.register(name, { files: [path], replace, version }, null)
  }
}

describe('versions', () => {
  test('a held name is refused without replace, and what is held stays', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(1000, 1) }, false)
      await failure(() => register('m', { w: u8(1000, 2) }, false), 'checkpoint_exists', "'m'")
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { w: u8(1000, 1) })
      release(true)
    }))

  test('an update uses the newest; the older ones go when it has succeeded', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(3 * MIB, 1) }, true, 'v1')
      const first = registry.lease('m')
      await register('m', { w: u8(3 * MIB, 2) }, true, 'v2')
      await register('m', { w: u8(3 * MIB, 3) }, true, 'v3')
      // the running update is not disturbed
      requireHeld(library, first.version, { w: u8(3 * MIB, 1) })
      const newest = registry.lease('m')
      expect(newest.version.version).toBe('v3')
      expect(newest.version.serial).toBeGreaterThan(first.version.serial)
      requireHeld(library, newest.version, { w: u8(3 * MIB, 3) })
      newest.release(true)
      // still under a lease: the memory of what was dropped is used again, its own is not
      await register('other', { w: u8(3 * MIB, 4) }, false)
      await register('another', { w: u8(3 * MIB, 5) }, false)
      requireHeld(library, first.version, { w: u8(3 * MIB, 1) })
      first.release(true)
      first.release(true)
      await registry.drop('none', { force: true })
      expect(() => library.bufferBytes(first.version.buffers[0]![0]!)).toThrow()
      requireHeld(library, newest.version, { w: u8(3 * MIB, 3) })
      expect(registry.memory().pinned_bytes).toBe(12 * MIB)
    }))

  test('a failed update drops nothing', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(3 * MIB, 1) }, true)
      await register('m', { w: u8(3 * MIB, 2) }, true)
      registry.lease('m').release(false)
      await registry.drop('other', { force: true })
      expect(registry.memory().pinned_bytes).toBe(8 * MIB)
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { w: u8(3 * MIB, 2) })
      release(true)
      await registry.drop('other', { force: true })
      expect(registry.memory().pinned_bytes).toBe(4 * MIB)
    }))

  test('a checkpoint under a lease is not dropped', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(1000, 1) }, false)
      const lease = registry.lease('m')
      expect(registry.list()[0]).toMatchObject({ in_use: true })
      await failure(() => registry.drop('m', { force: true }), 'checkpoint_busy', "'m'")
      requireHeld(library, lease.version, { w: u8(1000, 1) })
      lease.release(true)
      expect(await registry.drop('m', { force: true })).toMatchObject({ existed: true })
      expect(registry.memory().pinned_bytes).toBe(0)
    }))

  test('a drop that has waited for its turn finds the lease taken meanwhile; a later one need not wait', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(1000, 1) }, false)
      let registered = false
      const registering = register('m', { w: u8(32 * MIB, 2) }, true).then(() => {
        registered = true
      })
      const waiting = failure(() => registry.drop('m', { force: true }), 'checkpoint_busy', "'m'")
      const lease = registry.lease('m')
      await failure(() => registry.drop('m', { force: true }), 'checkpoint_busy', "'m'")
      expect(registered).toBe(false)
      await Promise.all([registering, waiting])
      requireHeld(library, lease.version, { w: u8(1000, 1) })
      lease.release(true)
      requireHeld(library, registry.lease('m').version, { w: u8(32 * MIB, 2) })
    }))
})

describe('host memory', () => {
  test(
    'does not grow over 50 versions under one name and path',
    () =>
      withRegistry(async (registry, dir, library) => {
        const register = writer(registry, dir)
        const pinned: number[] = []
        const objects: number[] = []
        for (let i = 0; i < 50; i++) {
          await register('m', { w: u8(3 * MIB, i), v: u8(MIB + 5, i + 100) }, true, `v${i}`)
          if (i % 3 === 0) registry.lease('m').release(true)
          pinned.push(registry.memory().pinned_bytes)
          objects.push(library.liveObjects())
        }
        expect(Math.max(...pinned.slice(4))).toBe(Math.max(...pinned.slice(0, 4)))
        expect(Math.max(...objects.slice(4))).toBe(Math.max(...objects.slice(0, 4)))
        const { version, release } = registry.lease('m')
        requireHeld(library, version, { w: u8(3 * MIB, 49), v: u8(MIB + 5, 149) })
        release(true)
      }),
    30_000,
  )

  test(
    'does not grow over 50 versions of other shapes',
    () =>
      withRegistry(async (registry, dir, library) => {
        const register = writer(registry, dir)
        const largest = 12 * MIB
        for (let i = 0; i < 50; i++) {
          const bytes = MIB + ((i * 7919 * 1013) % (largest - MIB))
          const tensors = { [`w.${i}`]: u8(bytes, i), v: u8(i, i) }
          await register('m', tensors, true)
          expect(registry.memory().pinned_bytes).toBeLessThanOrEqual(2 * 1.25 * (largest + 2 * MIB))
          const { version, release } = registry.lease('m')
          requireHeld(library, version, tensors)
          release(true)
        }
      }),
    60_000,
  )

  test('does not grow over 50 versions that no update takes', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      for (let i = 0; i < 50; i++) {
        await register('m', { w: u8(3 * MIB, i) }, true)
        expect(registry.memory().pinned_bytes).toBeLessThanOrEqual(8 * MIB)
      }
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { w: u8(3 * MIB, 49) })
      release(true)
    }))

  test('dropped memory is kept for reuse, force gives it back', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(6 * MIB, 1) }, false)
      const pinned = registry.memory().pinned_bytes
      expect(pinned).toBe(6 * MIB)
      const objects = library.liveObjects()
      await registry.drop('m', { force: false })
      expect(registry.memory().pinned_bytes).toBe(pinned)
      await register('n', { other: u8(5 * MIB + 1, 1) }, false)
      expect(library.liveObjects()).toBe(objects)
      expect(registry.memory().pinned_bytes).toBe(pinned)
      await registry.drop('n', { force: true })
      expect(registry.memory().pinned_bytes).toBe(0)
      expect(library.liveObjects()).toBeLessThan(objects)
    }))

  const budget = { hostMemoryBytes: 16 * MIB }

  test('over the budget: who holds what is said, nothing changes', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('a', { w: u8(10 * MIB, 1) }, false, 'v7')
      const before = [library.liveObjects(), registry.memory().pinned_bytes]
      await failure(
        () => register('b', { w: u8(8 * MIB, 1) }, true),
        'host_memory_exhausted',
        `'a' version v7 ${10 * MIB} bytes`,
        `${16 * MIB}`,
      )
      expect([library.liveObjects(), registry.memory().pinned_bytes]).toEqual(before)
      await register('b', { w: u8(6 * MIB, 1) }, false)
      expect(registry.memory().pinned_bytes).toBe(16 * MIB)
      // free memory of other sizes gives way
      await registry.drop('a', { force: false })
      await registry.drop('b', { force: false })
      await register('c', { w: u8(15 * MIB, 1) }, false)
      expect(registry.memory().pinned_bytes).toBeLessThanOrEqual(16 * MIB)
    }, budget))

  test('that does not hold both versions: the old one goes first', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(10 * MIB, 1) }, true)
      expect(await register('m', { w: u8(4 * MIB, 2) }, true)).not.toHaveProperty(
        'previous_dropped',
      )
      expect(await register('m', { w: u8(14 * MIB, 3) }, true)).toMatchObject({
        previous_dropped: true,
      })
      const { version, release } = registry.lease('m')
      requireHeld(library, version, { w: u8(14 * MIB, 3) })
      release(true)
    }, budget))

  test('while the old one is gone and the new one not there, an update is told to try again', () =>
    withRegistry(async (registry, dir) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(14 * MIB, 1) }, true)
      const codes = new Set<string>()
      let done = false
      const replacing = register('m', { w: u8(14 * MIB, 2) }, true).finally(() => {
        done = true
      })
      while (!done) {
        try {
          registry.lease('m').release(false)
          codes.add('ok')
        } catch (error) {
          codes.add((error as CkptError).code)
        }
        await new Promise((resolve) => setImmediate(resolve))
      }
      expect(await replacing).toMatchObject({ previous_dropped: true })
      expect([...codes].sort()).toEqual(['checkpoint_busy', 'ok'])
      registry.lease('m').release(true)
    }, budget))

  test('the old one does not go when the new one does not fit anyhow, or an update uses it', () =>
    withRegistry(async (registry, dir, library) => {
      const register = writer(registry, dir)
      await register('m', { w: u8(10 * MIB, 1) }, true)
      await failure(
        () => register('m', { w: u8(20 * MIB, 2) }, true),
        'host_memory_exhausted',
        "'m'",
      )
      const lease = registry.lease('m')
      await failure(
        () => register('m', { w: u8(10 * MIB, 2) }, true),
        'host_memory_exhausted',
        'an update uses it',
      )
      requireHeld(library, lease.version, { w: u8(10 * MIB, 1) })
      lease.release(false)
      expect(await register('m', { w: u8(10 * MIB, 2) }, true)).toMatchObject({
        previous_dropped: true,
      })
    }, budget))

  test('with --evict the checkpoint that was not used for longest goes, and the answer says so', () =>
    withRegistry(
      async (registry, dir, library) => {
        const register = writer(registry, dir)
        for (const name of ['a', 'b', 'c']) await register(name, { w: u8(4 * MIB, 1) }, false)
        registry.lease('a').release(true)
        expect(await register('d', { w: u8(6 * MIB, 1) }, false)).toMatchObject({ evicted: ['b'] })
        expect(registry.list().map(({ name }) => name)).toEqual(['a', 'c', 'd'])
        // no more than is needed, and nothing when all of it is not enough
        const objects = library.liveObjects()
        await failure(
          () => register('e', { w: u8(17 * MIB, 1) }, false),
          'host_memory_exhausted',
          "'a'",
        )
        expect([registry.list().length, library.liveObjects()]).toEqual([3, objects])
        // what is replaced goes first, what an update uses stays
        const lease = registry.lease('c')
        expect(await register('d', { w: u8(7 * MIB, 2) }, true)).toEqual(
          expect.not.objectContaining({ evicted: expect.anything() }),
        )
        for (const name of ['a', 'd']) registry.lease(name).release(true)
        expect(await register('e', { w: u8(4 * MIB, 1) }, false)).toMatchObject({ evicted: ['a'] })
        requireHeld(library, lease.version, { w: u8(4 * MIB, 1) })
        lease.release(true)
        expect(registry.memory().pinned_bytes).toBeLessThanOrEqual(budget.hostMemoryBytes)
      },
      { ...budget, evict: true },
    ))

  test('with --evict a trainer that asks for several buffers gets room for all of them, or nothing goes', () =>
    withRegistry(
      async (registry, dir) => {
        const register = writer(registry, dir)
        for (const name of ['a', 'b', 'c']) await register(name, { w: u8(4 * MIB, 1) }, false)
        const asks = (...mib: number[]) =>
          registry.buffers('new', { bytes: mib.map((one) => one * MIB) })
        await failure(() => asks(8, 8, 8), 'host_memory_exhausted')
        expect(registry.list()).toHaveLength(3)
        expect(await asks(4, 4, 4)).toMatchObject({ evicted: ['a', 'b'] })
      },
      { ...budget, evict: true },
    ))
})

describe('at the same time', () => {
  test('closing while a registration that is not waited for begins frees everything', async () => {
    const dir = new TestDir()
    const library = openLibrary(LIBRARY)
    const before = [library.liveObjects(), openFiles(dir.path)]
    const file = dir.write('m.safetensors', safetensors({ w: u8(10 * MIB, 1) }))
    for (let round = 0; round < 30; round++) {
      const registry = await createRegistry(daemonOptions(dir.path, {}))
      const asked = registry.register('m', { files: [file], wait: false }, null)
      asked.catch(() => {})
      for (const end = performance.now() + round / 4; performance.now() < end; ) await Bun.sleep(0)
      await registry.close()
      expect([library.liveObjects(), openFiles(dir.path)]).toEqual(before)
    }
    dir.remove()
  })

  test('two registrations of one name: the second waits its turn', () =>
    withRegistry(async (registry, dir, library) => {
      const paths = [1, 2, 3].map((seed) =>
        dir.write(`${seed}.safetensors`, safetensors({ w: u8(8 * MIB, seed) })),
      )
      const settled = await Promise.allSettled([
        registry.register('m', { files: [paths[0]!] }, null),
        registry.register('m', { files: [paths[1]!] }, null),
        registry.register('m', { files: [paths[2]!], replace: true, version: 'last' }, null),
      ])
      expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
      expect((settled[1] as PromiseRejectedResult).reason.code).toBe('checkpoint_exists')
      const { version, release } = registry.lease('m')
      expect(version.version).toBe('last')
      requireHeld(library, version, { w: u8(8 * MIB, 3) })
      release(true)
    }))

  test(
    'registrations of several names, checks and drops',
    () =>
      withRegistry(async (registry, dir, library) => {
        const names = ['a', 'b', 'c', 'd']
        const register = writer(registry, dir)
        for (let round = 0; round < 5; round++) {
          await Promise.all([
            ...names.map((name, i) => register(name, { w: u8(4 * MIB + i, round * 10 + i) }, true)),
            registry.drop(`none${round}`, { force: true }),
          ])
          for (const [i, name] of names.entries()) {
            const { version, release } = registry.lease(name)
            requireHeld(library, version, { w: u8(4 * MIB + i, round * 10 + i) })
            release(i % 2 === 0)
          }
        }
      }),
    20_000,
  )

  test('too many waiting registrations are refused', () =>
    withRegistry(async (registry, dir) => {
      const path = dir.write('a.safetensors', safetensors({ w: u8(10, 1) }))
      const many = Array.from({ length: 70 }, () =>
        registry.register('m', { files: [path], replace: true }, null),
      )
      const settled = await Promise.allSettled(many)
      const codes = settled.map((result) =>
        result.status === 'fulfilled' ? 'ok' : result.reason.code,
      )
      expect(codes.filter((code) => code === 'ok').length).toBe(64)
      expect(codes.filter((code) => code === 'queue_full').length).toBe(6)
    }))

  test('closing during a registration ends it and frees everything', () =>
    withRegistry(async (registry, dir) => {
      const path = dir.write('a.safetensors', safetensors({ w: u8(64 * MIB, 1) }))
      const running = registry.register('m', { files: [path] }, null)
      const outcome = running.then(
        () => 'done',
        (error) => error.code,
      )
      await registry.close()
      expect(['done', 'shutting_down']).toContain(await outcome)
      await failure(() => registry.register('n', { files: [path] }, null), 'shutting_down')
    }))
})
