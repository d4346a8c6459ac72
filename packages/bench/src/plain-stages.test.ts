import { afterAll, describe, expect, test } from 'bun:test'
import { openLibrary } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { piecesOf, PlainStages } from './plain-stages.ts'

test('pieces are all of the bytes, one behind another, each whole in the ring', () => {
  for (const [bytes, pieceBytes, ringBytes] of [
    [100, 30, 100],
    [90, 30, 30],
    [7, 30, 64],
  ] as const) {
    const pieces = piecesOf(bytes, pieceBytes, ringBytes)
    let end = 0
    for (const { at, offset, bytes: size } of pieces) {
      expect(at).toBe(end)
      expect(offset + size).toBeLessThanOrEqual(ringBytes)
      end += size
    }
    expect(end).toBe(bytes)
  }
  // they go round it
  expect(piecesOf(100, 30, 100).map(({ offset }) => offset)).toEqual([0, 30, 60, 0])
  expect(piecesOf(0, 30, 100)).toEqual([])
})

describe('plain stages', () => {
  const library = openLibrary({ kind: 'host' })
  const before = library.liveObjects()
  const stack = new DisposableStack()
  const stages = new PlainStages(library, stack)
  const sizes = { h2d: 0, broadcast: 0, reload: 0, pieceBytes: MIB, ringBytes: 2 * MIB }
  const run = (some: object) =>
    stages.do({ type: 'run', stages: { ...sizes, ...some } }) as Record<string, number>

  afterAll(() => {
    stack.dispose()
    expect(library.liveObjects()).toBe(before)
  })

  test('take time where they are asked for, and only there', () => {
    const { h2d, reload, broadcast } = run({ h2d: 4 * MIB, reload: 3 * MIB })
    expect(h2d).toBeGreaterThan(0)
    expect(reload).toBeGreaterThan(0)
    expect(broadcast).toBe(0)
  })

  test('broadcast when they have met', () => {
    expect(() => run({ broadcast: MIB })).toThrow('it has met nobody')
    const id = stages.do({ type: 'id', members: 1 }) as string
    stages.do({ type: 'meet', id, members: 1, member: 0 })
    expect(run({ broadcast: 3 * MIB }).broadcast).toBeGreaterThan(0)
  })
})
