import { expect, test } from 'bun:test'
import { BusyIntervals, gapsBetween, unionSeconds } from './intervals.ts'

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

test('gaps are where no list has work, not before the first and after the last', () => {
  const one = Float64Array.of(10, 20, 40, 50)
  const two = Float64Array.of(15, 25, 25, 30, 70, 80)
  expect([...gapsBetween([one, two])]).toEqual([30, 40, 50, 70])
  expect([...gapsBetween([two, one])]).toEqual([30, 40, 50, 70])
  expect([...gapsBetween([one, Float64Array.of(0, 100)])]).toEqual([])
  expect([...gapsBetween([])]).toEqual([])
})
