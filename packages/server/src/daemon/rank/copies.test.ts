import { expect, test } from 'bun:test'
import { bufferAt } from './copies.ts'

const SOURCE = { starts: Float64Array.of(0, 100, 300), bytes: Float64Array.of(100, 50, 10) }

test('the buffer that holds a range of the source space', () => {
  expect(bufferAt(SOURCE, 0, 100)).toBe(0)
  expect(bufferAt(SOURCE, 99, 1)).toBe(0)
  expect(bufferAt(SOURCE, 100, 50)).toBe(1)
  expect(bufferAt(SOURCE, 300, 10)).toBe(2)
})

test('a range that crosses buffers, or lies in a gap, is a mistake of the plan', () => {
  for (const [offset, bytes] of [
    [99, 2],
    [149, 2],
    [200, 1],
    [305, 6],
    [400, 1],
  ] as const) {
    expect(() => bufferAt(SOURCE, offset, bytes)).toThrow('no source buffer')
  }
  const empty = { starts: new Float64Array(0), bytes: new Float64Array(0) }
  expect(() => bufferAt(empty, 0, 1)).toThrow('no source buffer')
})
