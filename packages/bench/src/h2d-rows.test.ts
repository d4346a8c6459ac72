import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Library, openLibrary } from '@ckpt/cuda'
import { GIB, KIB, MIB } from './bench.ts'
import { allocate, SourceBytes } from './device-bytes.ts'
import { copyOfRows, rowsOfCases } from './h2d-rows.ts'

const dir = mkdtempSync(join(tmpdir(), 'ckpt-rows-test-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

test('all cases move the same whole rows; the source has at most 1 GiB', () => {
  for (const [kind, largest, bytes] of [
    ['cuda', 64 * GIB, 128 * MIB],
    ['host', 64 * GIB, 16 * MIB],
    ['cuda', 3 * MIB, 3 * MIB],
    ['host', 4 * KIB, 24 * KIB],
  ] as const) {
    const cases = rowsOfCases(kind, largest)
    expect(new Set(cases.map(({ width, pitch }) => `${width} ${pitch}`)).size).toBe(12)
    const moved = Math.floor(bytes / (24 * KIB)) * 24 * KIB
    for (const { width, pitch, height } of cases) {
      expect(height).toBe(Math.trunc(height))
      expect(width * height).toBe(moved)
      expect(pitch * height).toBeLessThanOrEqual(GIB)
    }
  }
})

type Copy = Library['copyH2d2d']

test('the rows are compared, not what lies between them', () => {
  const library = openLibrary({ kind: 'host' })
  const real: Copy = library.copyH2d2d.bind(library)
  const copies: Record<string, Copy> = {
    right: real,
    'no copy': () => {},
    'without its last row': (stream, memory, at, pitch, buffer, from, fromPitch, width, height) =>
      real(stream, memory, at, pitch, buffer, from, fromPitch, width, height - 1),
    'the bytes in one piece': (stream, memory, at, pitch, buffer, from, _, width, height) =>
      real(stream, memory, at, pitch, buffer, from, width, width, height),
    'the rows beside them': (stream, memory, at, pitch, buffer, from, fromPitch, width, height) =>
      real(stream, memory, at, pitch, buffer, from + width, fromPitch, width, height),
  }
  {
    using stack = new DisposableStack()
    const source = new SourceBytes(library, stack, dir, 8 * MIB)
    const target = allocate(library, stack, 0, MIB)
    for (const rows of rowsOfCases('host', MIB)) {
      for (const [what, copy] of Object.entries(copies)) {
        library.copyH2d2d = copy
        const timed = copyOfRows(library, target, source, rows)
        timed.prepare?.()
        timed.run()
        const wrong = what === 'right' ? 0 : 1
        expect([what, rows, timed.check()]).toEqual([what, rows, { compared: 1, wrong }])
      }
    }
  }
  expect(library.liveObjects()).toBe(0)
})
