import { expect, test } from 'bun:test'
import { existsSync, readFileSync, renameSync } from 'node:fs'
import { openLibrary } from '@ckpt/cuda'
import { LIBRARY, safetensors, TestDir, u8 } from '../registry/testing/fixture.ts'
import { HostMemory } from './host-memory.ts'

const START = { library: LIBRARY, budgetBytes: 2 ** 30, allowedDirs: null }
const LOAD = { part: 1, owner: null, peers: [], refuseConflicts: true }

for (const inPlace of [false, true]) {
  test(`consume removes the file that was loaded, not one that took its path meanwhile; in place: ${inPlace}`, async () => {
    const dir = new TestDir('/dev/shm')
    const before = openLibrary(LIBRARY).liveObjects()
    const memory = new HostMemory(START, () => {})
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
