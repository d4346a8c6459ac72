import { expect, test } from 'bun:test'
import { chromeTrace } from '@ckpt/core/update/trace'
import { Calibration, timelineOf } from './calibration.ts'
import type { PlainSizes } from './plain-stages.ts'

const spans = (...ms: number[]) => Float64Array.from(ms)
const PHASES = {
  group: 'update',
  name: 'phases',
  spans: spans(0, 9, 9, 90),
  labels: ['open', 'transfer'],
}

/** Of two ranks, two buckets. */
const TRACE = chromeTrace([
  PHASES,
  { group: 'rank 0', name: 'h2d', spans: spans(2, 5) },
  { group: 'rank 0', name: 'reload', spans: spans(10, 11, 20, 24) },
  { group: 'rank 1', name: 'h2d', spans: spans(1, 7) },
  { group: 'rank 1', name: 'reload', spans: spans(10, 13, 20, 22) },
])

test('a timeline is from the first copy until the last engine has all', () => {
  const { reloadSeconds, openSeconds, totalSeconds } = timelineOf(TRACE)
  expect(reloadSeconds).toEqual([
    [0.001, 0.004],
    [0.003, 0.002],
  ])
  expect(openSeconds).toBeCloseTo(0.008)
  expect(totalSeconds).toBeCloseTo(0.023)
  expect(() => timelineOf(chromeTrace([PHASES]))).toThrow('no trace of an update through the ring')
})

test('rates are medians, of each stage as it is measured', async () => {
  const asked: PlainSizes[] = []
  const broadcasts = [4, 2, 2.5]
  const plain = {
    run: async (sizes: PlainSizes) => {
      asked.push(sizes)
      if (sizes.broadcast === 0) return { h2d: sizes.h2d === 0 ? 0 : 1, broadcast: 0, reload: 5e-6 }
      // while broadcasts go on copies are slower
      if (sizes.h2d > 0) return { h2d: 9, broadcast: broadcasts.shift() as number, reload: 9 }
      return { h2d: 0, broadcast: 32 * 0.01, reload: 0 }
    },
  }
  const calibration = new Calibration(plain, 4, { bytes: 1000, pieceBytes: 100, ringBytes: 500 })
  for (let i = 0; i < 3; i++) await calibration.time()
  calibration.takeUpdate(timelineOf(TRACE))
  const { rates } = calibration
  const [ring, none] = [
    { pieceBytes: 100, ringBytes: 500 },
    { h2d: 0, broadcast: 0, reload: 0 },
  ]
  expect(asked.slice(0, 3)).toEqual([
    { ...ring, ...none, h2d: 250 },
    { ...ring, ...none, reload: 1000 },
    { ...ring, h2d: 250, broadcast: 1000, reload: 1000 },
  ])
  expect(rates.h2dBytesPerSecond).toBe(250)
  expect(rates.broadcastSeconds).toBeCloseTo(0.01)
  // of 2.5 s ten times 10 ms are of the calls
  expect(rates.broadcastBytesPerSecond).toBeCloseTo(1000 / 2.4)
  expect(rates.reloadBytesPerSecond).toBeCloseTo(1000 / 5e-6)
  // of each bucket the slower engine, 3 and 4 ms, without what 100 bytes take
  const found = [0.003 - 5e-7, 0.004 - 5e-7].map((one) => Math.abs(one - rates.bucketSeconds))
  expect(Math.min(...found)).toBeLessThan(1e-9)
  expect(rates.openSeconds).toBeCloseTo(0.008)
})
