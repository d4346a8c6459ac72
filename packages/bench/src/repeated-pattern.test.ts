import { expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLibrary } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { hex } from './pattern-file.ts'
import { RepeatedPattern } from './repeated-pattern.ts'

const BYTES = 10 * MIB + 7

test('the host memory holds what is copied in JavaScript, also across the ends of the pattern', () => {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-pattern-test-'))
  const library = openLibrary({ kind: 'host' })
  try {
    using stack = new DisposableStack()
    const pattern = new RepeatedPattern(library, stack, dir, BYTES)
    for (const [from, bytes] of [
      [0, BYTES],
      [4 * MIB - 100, 200],
      [8 * MIB - 7, MIB],
      [5, 1],
    ] as const) {
      const target = new Uint8Array(bytes + 3)
      pattern.copyTo(target, 3, from, bytes)
      const held = hex(library.bufferSha256(pattern.buffer, from, bytes))
      const copied = new Bun.CryptoHasher('sha256').update(target.subarray(3)).digest('hex')
      expect([from, held]).toEqual([from, copied])
    }
    // the same place of two repetitions, but not two places of one
    const [first, second, near] = [0, 2 ** 22 - 3, 64].map((from) => {
      return hex(library.bufferSha256(pattern.buffer, from, 64))
    })
    expect(first).toBe(second!)
    expect(first).not.toBe(near!)
    expect(readdirSync(dir)).toEqual([])
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
  expect(library.liveObjects()).toBe(0)
})
