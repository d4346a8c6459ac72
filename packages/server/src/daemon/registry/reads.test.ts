import { expect, test } from 'bun:test'
import { closeSync, fsyncSync, openSync, readFileSync } from 'node:fs'
import type { Library } from '@ckpt/cuda'
import { requireHeld, safetensors, TestDir, u8, withRegistry } from './testing/fixture.ts'

const MIB = 2 ** 20
/** Neither begins at a block of the disk; the second is less than a block. */
const TENSORS = { a: u8(9 * MIB + 123, 1), b: u8(77, 2), c: u8(3 * MIB + 1, 3) }
const BYTES = 12 * MIB + 201

/** Takes a file out of the page cache. */
function uncache(path: string): void {
  const file = openSync(path, 'r+')
  fsyncSync(file)
  closeSync(file)
  Bun.spawnSync(['dd', `if=${path}`, 'iflag=nocache', 'count=0'], { stderr: 'ignore' })
}

/** Whether the file can be cold here, and read directly. */
function canBeDirect(library: Library, path: string): boolean {
  uncache(path)
  const file = library.fileOpen(path)
  try {
    const cold = (library.fileLocate(file).cachedFraction ?? 1) < 0.5
    return cold && library.fileDirect(file)
  } finally {
    library.fileClose(file)
  }
}

test('a cold file is read past the page cache, a cached one through it, and the answer says which and why', () =>
  withRegistry(async (registry, dir, library) => {
    const cold = dir.write('cold.safetensors', safetensors(TENSORS))
    if (!canBeDirect(library, cold)) {
      console.log('skipped: the file system of the temporary directory keeps or refuses it')
      return
    }
    const register = async (path: string) => {
      const { reads } = await registry.register('m', { files: [path], replace: true }, null)
      const { version, release } = registry.lease('m')
      requireHeld(library, version, TENSORS)
      release(true)
      return reads
    }
    const direct = [{ how: 'direct' as const, files: 1, bytes: BYTES, reason: 'not cached' }]
    expect(await register(cold)).toEqual(direct)
    // it has left nothing there
    expect(await register(cold)).toEqual(direct)
    readFileSync(cold)
    expect(await register(cold)).toEqual([
      { how: 'read', files: 1, bytes: BYTES, reason: 'in the page cache' },
    ])
    uncache(cold)
    const streamed = { files: [cold], replace: true, wait: false }
    expect((await registry.register('m', streamed, null)).reads).toEqual(direct)
  }))

test('files of a kind are one entry; of no file there is none', () =>
  withRegistry(async (registry, dir) => {
    const memory = new TestDir('/dev/shm')
    try {
      const files = [
        dir.write('1.safetensors', safetensors({ d: u8(100, 4) })),
        memory.write('2.safetensors', safetensors({ e: u8(2 * MIB, 5) })),
        dir.write('3.safetensors', safetensors({ f: u8(200, 6) })),
        dir.write('4.safetensors', safetensors({})),
      ]
      expect((await registry.register('m', { files }, null)).reads).toEqual([
        { how: 'read', files: 2, bytes: 300, reason: 'small' },
        { how: 'read', files: 1, bytes: 2 * MIB, reason: 'in shared memory (tmpfs)' },
      ])
      const inPlace = { files, in_place: true, replace: true }
      expect((await registry.register('m', inPlace, null)).reads).toEqual([
        { how: 'mapped', files: 3, bytes: 300 + 2 * MIB, reason: 'in place' },
      ])
      expect(await registry.register('none', { files: [] }, null)).not.toHaveProperty('reads')
    } finally {
      memory.remove()
    }
  }))
