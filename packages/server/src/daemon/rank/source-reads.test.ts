import { describe, expect, test } from 'bun:test'
import { buildTable } from '@ckpt/core'
import type { Library, ReadProgress } from '@ckpt/cuda'
import fc from 'fast-check'
import { HeldPlan } from './plans.ts'
import { piecesBelow, SourceReads } from './source-reads.ts'

const READ = 7
const SIGNAL = 3

/** One owner with tensors of these sizes, one after another, read in pieces that begin at `pieceStarts`. */
function setUp(sizes: readonly number[], pieceStarts: readonly number[], segmentBytes: number) {
  let offset = 0
  const rows = sizes.map((bytes, i) => {
    const row = { name: `t.${i}`, dtype: 0, shape: [bytes], bytes, owner: 0, offset }
    offset += Math.ceil(bytes / 256) * 256
    return row
  })
  const held = new HeldPlan({
    table: buildTable(rows),
    sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(offset) }],
    ownerRanks: [[0]],
    mode: 'pipelined',
    ringBytes: 2 ** 21,
    bucketBytes: Math.max(...sizes, 1024),
    segmentBytes,
  })
  const state = { prefix: 0, notified: [] as number[] }
  const library = {
    readQuery: () => ({ piecesPrefix: state.prefix }) as ReadProgress,
    readNotify: (read: number, pieces: number, signal: number) => {
      expect([read, signal]).toEqual([READ, SIGNAL])
      state.notified.push(pieces)
    },
  } as unknown as Library
  const times = { bytes: offset, startedMs: 0 }
  const reading = { read: READ, pieceStarts: Float64Array.from(pieceStarts), ...times }
  const reads = new SourceReads(library, SIGNAL, held.order, [reading])
  return { held, state, reads, library }
}

describe('segments of a checkpoint that is being read', () => {
  test('are told of when all their bytes are there, and the next one is waited for', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 20 }),
        fc.integer({ min: 100, max: 3000 }),
        fc.integer({ min: 1, max: 8 }),
        (sizes, pieceBytes, segmentBlocks) => {
          const total = sizes.reduce((sum, bytes) => sum + Math.ceil(bytes / 256) * 256, 0)
          const starts = []
          for (let at = 0; at < total; at += pieceBytes) starts.push(at)
          const { held, state, reads } = setUp(sizes, starts, 256 * segmentBlocks)
          const { plan } = held
          for (let prefix = 0; prefix <= starts.length; prefix++) {
            state.prefix = prefix
            const segments = reads.take()
            const filled = starts[prefix] ?? total
            for (let s = 0; s < segments; s++) {
              expect(plan.segmentSource[s]! + plan.segmentSize[s]!).toBeLessThanOrEqual(filled)
            }
            if (segments === plan.segmentCount) continue
            // the next one is not there, and that many pieces make it so
            const end = plan.segmentSource[segments]! + plan.segmentSize[segments]!
            expect(end).toBeGreaterThan(filled)
            const pieces = state.notified.at(-1)!
            expect(starts[pieces] ?? total).toBeGreaterThanOrEqual(end)
            expect(starts[pieces - 1]!).toBeLessThan(end)
          }
          expect(reads.take()).toBe(plan.segmentCount)
        },
      ),
    )
  })

  test('without a read are all there, and nothing is asked', () => {
    const { held, library, state } = setUp([1000, 2000], [0], 1024)
    const reads = new SourceReads(library, SIGNAL, held.order, [null])
    expect(reads.take()).toBe(held.plan.segmentCount)
    expect(state.notified).toEqual([])
  })

  test('pieces below an offset', () => {
    const starts = Float64Array.of(10, 20, 30)
    expect([5, 10, 11, 20, 21, 30, 31, 99].map((end) => piecesBelow(starts, end))).toEqual([
      0, 0, 1, 1, 2, 2, 3, 3,
    ])
  })
})
