import { describe, expect, test } from 'bun:test'
import { existsSync, renameSync, truncateSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { CkptError } from '@ckpt/core'
import { type Library, openLibrary } from '@ckpt/cuda'
import {
  failure,
  LIBRARY,
  openFiles,
  pattern,
  safetensors,
  TestDir,
  u8,
} from '../registry/testing/fixture.ts'
import { Arena } from './arena.ts'
import { unmap } from './in-place.ts'
import { loadPart } from './part-loader.ts'
import { PathGuard } from './path-guard.ts'

const library = openLibrary(LIBRARY)
const TENSORS = { a: u8(3_000_000, 1), b: u8(1_000_001, 2) }

/** Loads one file; `meanwhile` runs when memory is taken and nothing is read yet. */
async function loadWhile(
  path: string,
  meanwhile: () => void,
  inPlace = false,
  used: Library = library,
  arena = new Arena(library, 2 ** 30),
) {
  const signal = library.signalCreate()
  const before = [library.liveObjects(), openFiles(dirname(path))]
  try {
    return await loadPart(
      {
        library: used,
        arena,
        guard: new PathGuard(null),
        parts: new Map(),
        leaseSignal: signal,
        stopped: meanwhile,
      },
      {
        part: 1,
        owner: null,
        files: [path],
        inPlace,
        consume: false,
        peers: [],
        refuseConflicts: true,
        stream: false,
      },
    ).then((result) => {
      for (const file of result.part.mapped) {
        unmap(library, arena, file)
        library.fileClose(file.file)
      }
      arena.giveBack(result.part.arena)
      arena.trim(null)
      return result
    })
  } finally {
    expect([library.liveObjects(), openFiles(dirname(path))]).toEqual(before)
    expect(arena.pinnedBytes).toBe(0)
    library.signalDestroy(signal)
  }
}

async function withFile(run: (path: string, dir: TestDir) => Promise<void>): Promise<void> {
  const dir = new TestDir()
  try {
    await run(dir.write('a.safetensors', safetensors(TENSORS)), dir)
  } finally {
    dir.remove()
  }
}

describe('a file that changes while it is read', () => {
  const changes: Record<string, (path: string) => void> = {
    truncated: (path) => truncateSync(path, 1000),
    emptied: (path) => truncateSync(path, 0),
    rewritten: (path) => writeFileSync(path, safetensors({ ...TENSORS, b: u8(1_000_001, 3) })),
    longer: (path) => writeFileSync(path, pattern(9_000_000, 1)),
  }
  for (const [what, change] of Object.entries(changes)) {
    test(`${what}: file_changed with its name, nothing is left`, () =>
      withFile(async (path) => {
        await failure(() => loadWhile(path, () => change(path)), 'file_changed', path)
      }))
  }

  test('replaced by rename: the bytes of the file that was opened', () =>
    withFile(async (path, dir) => {
      const next = dir.write('next', 'x')
      const { part } = await loadWhile(path, () => existsSync(next) && renameSync(next, path))
      expect(part.table.names).toEqual(['a', 'b'])
    }))
})

test('a load that is stopped leaves nothing, in the arena and in place', () =>
  withFile(async (path) => {
    for (const inPlace of [false, true]) {
      const stop = () => {
        throw new CkptError('shutting_down', 'stopped')
      }
      await failure(() => loadWhile(path, stop, inPlace), 'shutting_down')
      let calls = 0
      const stopLater = () => {
        if (++calls > 1) stop()
      }
      if (inPlace) await failure(() => loadWhile(path, stopLater, inPlace), 'shutting_down')
    }
  }))

test('no byte of the weights enters JavaScript, by copy or in place: only headers are read', () =>
  withFile(async (path) => {
    const ends: number[] = []
    const recording = new Proxy(library, {
      get(target, name: keyof Library) {
        if (name === 'fileRead') {
          return (file: number, offset: number, bytes: number) => {
            ends.push(offset + bytes)
            return target.fileRead(file, offset, bytes)
          }
        }
        const member = target[name]
        return typeof member === 'function' ? member.bind(target) : member
      },
    })
    const dataStart = safetensors(TENSORS).length - TENSORS.a.bytes.length - TENSORS.b.bytes.length
    for (const inPlace of [false, true]) {
      const { part } = await loadWhile(path, () => {}, inPlace, recording)
      expect(part.table.names).toEqual(['a', 'b'])
      expect(Math.max(...ends.splice(0))).toBe(dataStart)
    }
  }))

test('a part tells the NUMA node of memory that was asked from one, and of no other', () =>
  withFile(async (path) => {
    const placing = new Proxy(library, {
      get(target, name: keyof Library) {
        if (name === 'bufferAllocNear') {
          return (bytes: number) => ({ buffer: target.bufferAlloc(bytes, 0), placed: true })
        }
        const member = target[name]
        return typeof member === 'function' ? member.bind(target) : member
      },
    })
    const load = (nodes: number[], inPlace: boolean) =>
      loadWhile(path, () => {}, inPlace, library, new Arena(placing, 2 ** 30, nodes))
    expect((await load([1, 3], false)).part.source.nodes).toEqual(Int32Array.of(1))
    expect((await load([1, 3], true)).part.source.nodes).toBeUndefined()
    expect((await load([], false)).part.source.nodes).toBeUndefined()
  }))
