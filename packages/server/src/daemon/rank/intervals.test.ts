import { expect, test } from 'bun:test'
import { BusyIntervals, unionSeconds } from './intervals.ts'

test('overlapping work counts once, idle time not at all', () => {
  const busy = new BusyIntervals()
  busy.begin(1000)
  busy.begin(1200, 2)
  busy.end(1300)
  busy.end(1500, 2)
  busy.begin(2000)
  expect([...busy.take(2250)]).toEqual([1000, 1500, 2000, 2250])
  expect(() => busy.end(3000)).toThrow('ended')
})

test('the union of the intervals of several ranks', () => {
  const one = Float64Array.of(0, 1000, 3000, 4000)
  const two = Float64Array.of(500, 2000, 3200, 3300)
  expect(unionSeconds([one, two])).toBe(3)
  expect(unionSeconds([two, one])).toBe(3)
  expect(unionSeconds([])).toBe(0)
})
