import { expect, test } from 'bun:test'
import type { PlanSummary, StageIntervals } from '../rank/messages.ts'
import { toldBy } from './told.ts'

const NONE = new Float64Array(0)
const STAGE = { busy_s: 0, bytes: 0 }
const summary = {
  bucketCount: 3,
  bytesThrough: Float64Array.of(10, 30, 60),
  tensorsThrough: Uint32Array.of(2, 3, 7),
} as PlanSummary

const reload = (...ms: number[]): StageIntervals => ({
  h2d: NONE,
  broadcast: NONE,
  reload: Float64Array.from(ms),
})

const stages = { h2d: STAGE, broadcast: { busy_s: 2, bytes: 60 }, reload: STAGE }

test('a bucket took as long as in the slowest rank of its engine, with what it held', () => {
  const engines = [
    { key: 'a', stages: [reload(0, 1, 1, 3, 5, 6), reload(0, 4, 4, 5, 5, 6)] },
    { key: 'b', stages: [reload(0, 8, 8, 16, 20, 30)] },
  ]
  const told = toldBy({ ranks: [], summary, stages, engines })
  expect(told.broadcast).toEqual({ bytes: 60, seconds: 2 })
  const contents = { tensors: Float64Array.of(2, 1, 4), bytes: Float64Array.of(10, 20, 30) }
  expect(told.engines).toEqual([
    { key: 'a', buckets: { ...contents, seconds: Float64Array.of(0.004, 0.002, 0.001) } },
    { key: 'b', buckets: { ...contents, seconds: Float64Array.of(0.008, 0.008, 0.01) } },
  ])
})

test('an engine tells nothing whose buckets were not all seen one by one, or that has no rank here', () => {
  const engines = [
    { key: 'a', stages: [reload(0, 1, 1, 3, 5, 6), reload(0, 6)] },
    { key: 'b', stages: [] },
  ]
  expect(toldBy({ ranks: [], summary, stages, engines }).engines).toEqual([])
})
