import { expect, test } from 'bun:test'
import { chromeTrace } from '@ckpt/core/update/trace'
import { Calibration, reloadSeconds } from './calibration.ts'
import type { PlainSizes } from './plain-stages.ts'

const spans = (...ms: number[]) => Float64Array.from(ms)

/** Of two ranks, two buckets. */
const TRACE = chromeTrace([
  { group: 'update', name: 'phases', spans: spans(0, 90) },
  { group: 'rank 0', name: 'h2d', spans: spans(0, 5) },
  { group: 'rank 0', name: 'reload', spans: spans(10, 11, 20, 24) },
  { group: 'rank 1', name: 'reload', spans: spans(10, 13, 20, 22) },
])

test('what engines took of each bucket is read from a trace, by rank', () => {
  expect(reloadSeconds(TRACE)).toEqual([
    [0.001, 0.004],
    [0.003, 0.002],
  ])
})

test('rates are medians, and a broadcast has a part that goes by the call', async () => {
  const asked: PlainSizes[] = []
  const seconds = [4, 2, 2.5]
  const plain = {
    run: async (sizes: PlainSizes) => {
      asked.push(sizes)
      if (sizes.reload === 0) return { h2d: 0, broadcast: 32 * 0.01, reload: 0 }
      return { h2d: 1, broadcast: seconds.shift() as number, reload: 5 }
    },
  }
  const sizes = { bytes: 1000, pieceBytes: 100, ringBytes: 500 }
  const calibration = new Calibration(plain, 4, sizes)
  for (let i = 0; i < 3; i++) await calibration.time()
  calibration.takeEmpty(TRACE)
  const { rates } = calibration
  expect(asked[0]).toEqual({
    h2d: 250,
    broadcast: 1000,
    reload: 1000,
    pieceBytes: 100,
    ringBytes: 500,
  })
  expect(rates.h2dBytesPerSecond).toBe(250)
  expect(rates.broadcastSeconds).toBeCloseTo(0.01)
  // of 2.5 s ten times 10 ms are of the calls
  expect(rates.broadcastBytesPerSecond).toBeCloseTo(1000 / 2.4)
  expect(rates.reloadBytesPerSecond).toBe(200)
  // of each bucket the slower engine: 3 and 4 ms
  expect([0.003, 0.004]).toContain(rates.bucketSeconds)
})
