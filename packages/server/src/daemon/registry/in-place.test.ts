import { describe, expect, test } from 'bun:test'
import {
  closeSync,
  existsSync,
  openSync,
  renameSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { until } from '../../../../../test/support/until.ts'
import {
  failure,
  pattern,
  requireHeld,
  safetensors,
  type TestTensors,
  u8,
  withRegistry,
} from './testing/fixture.ts'
import type { Registry } from './registry.ts'

const TENSORS: TestTensors = {
  'b.w': { dtype: 'BF16', shape: [1000, 3], bytes: pattern(6000, 1) },
  'a.w': u8(3_000_001, 2),
}

async function requireBroken(registry: Registry, name: string, path: string): Promise<void> {
  await until('a broken lease', 2000, () => registry.list()[0]!.state === 'invalid')
  await failure(() => registry.lease(name), 'checkpoint_invalid', path)
}

for (const [kind, parent] of [
  ['disk', undefined],
  ['tmpfs', '/dev/shm'],
] as const) {
  describe(`in place on ${kind}`, () => {
    test('holds every byte without a copy', () =>
      withRegistry(
        async (registry, dir, library) => {
          const path = dir.write('a.safetensors', safetensors(TENSORS))
          const answer = await registry.register('m', { files: [path], in_place: true }, null)
          expect(answer).toMatchObject({ tensors: 2, bytes: 3_006_001 })
          expect(answer).not.toHaveProperty('notes')
          const { version, release } = registry.lease('m')
          expect(version.files.length).toBe(1)
          requireHeld(library, version, TENSORS)
          await registry.check(version)
          expect(registry.list()[0]).toMatchObject({ in_place: true, state: 'complete' })
          expect(registry.memory().pinned_bytes).toBe(Bun.file(path).size)
          release(true)
          await registry.drop('m', { force: false })
          expect(registry.memory().pinned_bytes).toBe(0)
        },
        {},
        parent,
      ))

    const changes: Record<string, (path: string) => void> = {
      truncated: (path) => truncateSync(path, 100),
      rewritten: (path) => writeFileSync(path, pattern(3_000_000, 8)),
      'opened for writing': (path) => closeSync(openSync(path, 'r+')),
    }
    for (const [what, change] of Object.entries(changes)) {
      test(`a file that is ${what} fails the check with its name`, () =>
        withRegistry(
          async (registry, dir) => {
            const good = dir.write('good.safetensors', safetensors({ g: u8(100, 4) }))
            const path = dir.write('a.safetensors', safetensors(TENSORS))
            await registry.register('m', { files: [good, path], in_place: true }, null)
            const { version, release } = registry.lease('m')
            await registry.check(version)
            change(path)
            await failure(() => registry.check(version), 'file_changed', path)
            release(false)
            await requireBroken(registry, 'm', path)
            // the next registration heals it
            writeFileSync(path, safetensors(TENSORS))
            await registry.register('m', { files: [path], in_place: true, replace: true }, null)
            expect(registry.list()[0]!.state).toBe('complete')
            registry.lease('m').release(true)
          },
          {},
          parent,
        ))
    }

    test('a change is noticed without a check', () =>
      withRegistry(
        async (registry, dir) => {
          const path = dir.write('a.safetensors', safetensors(TENSORS))
          await registry.register('m', { files: [path], in_place: true }, null)
          truncateSync(path, 0)
          await requireBroken(registry, 'm', path)
        },
        {},
        parent,
      ))

    test('a file replaced by rename is no change', () =>
      withRegistry(
        async (registry, dir, library) => {
          const path = dir.write('a.safetensors', safetensors(TENSORS))
          await registry.register('m', { files: [path], in_place: true }, null)
          renameSync(dir.write('next', safetensors({ w: u8(10, 1) })), path)
          const { version, release } = registry.lease('m')
          await registry.check(version)
          requireHeld(library, version, TENSORS)
          release(true)
        },
        {},
        parent,
      ))

    test('a refused lease: read into memory, and the answer says so', () =>
      withRegistry(
        async (registry, dir, library) => {
          const content = safetensors(TENSORS)
          const path = dir.write('a.safetensors', content)
          const other = dir.write('b.safetensors', safetensors({ o: u8(4096, 5) }))
          const writing = openSync(path, 'r+')
          const answer = await registry.register(
            'm',
            { files: [path, other], in_place: true },
            null,
          )
          expect(answer.notes).toEqual([`lease refused, read into memory: ${path}`])
          const { version, release } = registry.lease('m')
          expect(version.files.length).toBe(1)
          requireHeld(library, version, { ...TENSORS, o: u8(4096, 5) })
          writeSync(writing, pattern(content.length, 9), 0, content.length, 0)
          closeSync(writing)
          requireHeld(library, version, { ...TENSORS, o: u8(4096, 5) })
          await registry.check(version)
          release(true)
        },
        {},
        parent,
      ))

    test('consume removes files of tmpfs once all are registered, and what they held stays', () =>
      withRegistry(
        async (registry, dir, library) => {
          const path = dir.write('a.safetensors', safetensors(TENSORS))
          const link = join(dir.path, 'link.safetensors')
          symlinkSync(path, link)
          const bad = dir.write('bad.safetensors', 'x'.repeat(100))
          await failure(
            () => registry.register('m', { files: [link, bad], consume: true }, null),
            'safetensors_invalid',
          )
          expect(existsSync(path)).toBe(true)
          const { notes } = await registry.register('m', { files: [link], consume: true }, null)
          expect(existsSync(path)).toBe(kind === 'disk')
          if (kind === 'disk')
            expect(notes?.join()).toContain(`not removed, it is not in shared memory`)
          const { version, release } = registry.lease('m')
          await registry.check(version)
          requireHeld(library, version, TENSORS)
          release(true)
        },
        {},
        parent,
      ))
  })
}

describe('in place', () => {
  test('the same tensor in two files: the file that is not needed is not held', () =>
    withRegistry(async (registry, dir, library) => {
      const files = [
        dir.write('a.safetensors', safetensors(TENSORS)),
        dir.write('b.safetensors', safetensors(TENSORS)),
      ]
      await registry.register('m', { files, in_place: true }, null)
      const { version, release } = registry.lease('m')
      expect(version.files.length).toBe(1)
      requireHeld(library, version, TENSORS)
      writeFileSync(files[1]!, 'x')
      await registry.check(version)
      release(true)
    }))

  test('several files, one of them read: every byte is found', () =>
    withRegistry(async (registry, dir, library) => {
      const parts = [1, 2, 3].map((i) => ({
        [`${i}.a`]: u8(5001 * i, i),
        [`${i}.b`]: u8(30, i + 9),
      }))
      const files = parts.map((part, i) => dir.write(`${i}.safetensors`, safetensors(part)))
      const writing = openSync(files[1]!, 'r+')
      const answer = await registry.register('m', { files, in_place: true }, null)
      closeSync(writing)
      expect(answer.notes?.length).toBe(1)
      const { version, release } = registry.lease('m')
      expect(version.files.length).toBe(2)
      requireHeld(library, version, Object.assign({}, ...parts))
      // a plan and the memory see the same alignment
      expect([...version.sources[0]!.starts].every((start) => start % 4096 === 0)).toBe(true)
      release(true)
    }))

  test('counts in the budget', () =>
    withRegistry(
      async (registry, dir, library) => {
        const path = dir.write('a.safetensors', safetensors(TENSORS))
        const before = library.liveObjects()
        await failure(
          () => registry.register('m', { files: [path], in_place: true }, null),
          'host_memory_exhausted',
        )
        expect(library.liveObjects()).toBe(before)
      },
      { hostMemoryBytes: 2 ** 20 },
    ))

  test('is the default when the daemon says so, a request overrides it', () =>
    withRegistry(
      async (registry, dir) => {
        const path = dir.write('a.safetensors', safetensors(TENSORS))
        await registry.register('default', { files: [path] }, null)
        await registry.register('asked', { files: [path], in_place: false }, null)
        expect(registry.describe('default').in_place).toBe(true)
        expect(registry.describe('asked').in_place).toBe(false)
        expect(existsSync(path)).toBe(true)
      },
      { inPlace: 'always' },
      // where consuming would remove it
      '/dev/shm',
    ))

  test('the daemon that consumes by default keeps files that are asked for as a copy', () =>
    withRegistry(
      async (registry, dir) => {
        const path = dir.write('a.safetensors', safetensors(TENSORS))
        await registry.register('copy', { files: [path], in_place: false }, null)
        await registry.register('kept', { files: [path], consume: false }, null)
        expect(existsSync(path)).toBe(true)
        await registry.register('consumed', { files: [path] }, null)
        expect(existsSync(path)).toBe(false)
      },
      { inPlace: 'consume' },
      '/dev/shm',
    ))
})
