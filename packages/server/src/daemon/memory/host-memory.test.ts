import { expect, test } from 'bun:test'
import { existsSync, readFileSync, renameSync, truncateSync } from 'node:fs'
import { openLibrary } from '@ckpt/cuda'
import {
  failure,
  LIBRARY,
  MEMORY_START,
  safetensors,
  TestDir,
  u8,
} from '../registry/testing/fixture.ts'
import { HostMemory } from './host-memory.ts'

const LOAD = { part: 1, owner: null, peers: [], refuseConflicts: true, stream: false }

for (const inPlace of [false, true]) {
  test(`consume removes the file that was loaded, not one that took its path meanwhile; in place: ${inPlace}`, async () => {
    const dir = new TestDir('/dev/shm')
    const before = openLibrary(LIBRARY).liveObjects()
    const memory = new HostMemory(MEMORY_START, () => {})
    const replaced = dir.write('a.safetensors', safetensors({ a: u8(100_000, 1) }))
    const kept = dir.write('b.safetensors', safetensors({ b: u8(1000, 2) }))
    const next = dir.write('next', 'the next version')
    const files = [replaced, kept]
    const loading = memory.load({ ...LOAD, files, inPlace, consume: true })
    // the first file is open by now
    renameSync(next, replaced)
    const { table, notes } = await loading
    expect(table.names).toEqual(['a', 'b'])
    expect(readFileSync(replaced, 'utf8')).toBe('the next version')
    expect(notes).toEqual([`not removed, it was replaced: ${replaced}`])
    expect(existsSync(kept)).toBe(false)
    memory.close()
    expect(openLibrary(LIBRARY).liveObjects()).toBe(before)
    dir.remove()
  })
}

test('what is read while it is sent is removed when it has been read, and what fails is not', async () => {
  const dir = new TestDir('/dev/shm')
  const library = openLibrary(LIBRARY)
  const before = library.liveObjects()
  const memory = new HostMemory(MEMORY_START, () => {})
  const file = dir.write('a.safetensors', safetensors({ a: u8(40_000_000, 1) }))
  const request = { ...LOAD, files: [file], inPlace: false, consume: true, stream: true }
  const { reading } = await memory.load(request)
  expect(reading).not.toBeNull()
  const there = existsSync(file) || library.readQuery(reading!.read).state === 'done'
  expect(there).toBe(true)
  expect((await memory.finish(1)).notes).toEqual([])
  expect(existsSync(file)).toBe(false)

  const changing = dir.write('b.safetensors', safetensors({ a: u8(40_000_000, 2) }))
  await memory.load({ ...request, part: 2, files: [changing] })
  truncateSync(changing, 1000)
  await failure(() => memory.finish(2), 'file_changed', changing)
  expect(existsSync(changing)).toBe(true)
  memory.drop(2)
  memory.close()
  expect(library.liveObjects()).toBe(before)
  dir.remove()
})
