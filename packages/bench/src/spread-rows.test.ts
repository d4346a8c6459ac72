import { expect, test } from 'bun:test'
import type { Library } from '@ckpt/cuda'
import { spreadRows } from './spread-rows.ts'

const STREAM = 1
const LANES = [
  { stream: 2, event: 20 },
  { stream: 3, event: 30 },
]

test('rows take the streams in turn, and an event waits for those that were used', () => {
  const calls: unknown[] = []
  const library = {
    copyH2dBatch: (...call: unknown[]) => calls.push(['copies', call[0]]),
    copyH2d2d: (...call: number[]) => calls.push(['rows', call[0]]),
    eventRecord: (...call: number[]) => calls.push(['record', ...call]),
    streamWaitEvent: (...call: number[]) => calls.push(['wait', ...call]),
  } as unknown as Library
  const spread = spreadRows(library, LANES)
  const rows = () => spread.copyH2d2d(STREAM, 100, 0, 8, 50, 0, 16, 8, 4)
  rows()
  spread.copyH2dBatch(STREAM, [])
  spread.eventRecord(9, STREAM)
  rows()
  rows()
  rows()
  spread.eventRecord(9, STREAM)
  expect(calls).toEqual([
    ['rows', 2],
    ['copies', STREAM],
    ['record', 20, 2],
    ['wait', STREAM, 20],
    ['record', 9, STREAM],
    ['rows', 3],
    ['rows', STREAM],
    ['rows', 2],
    ['record', 30, 3],
    ['wait', STREAM, 30],
    ['record', 20, 2],
    ['wait', STREAM, 20],
    ['record', 9, STREAM],
  ])
})
