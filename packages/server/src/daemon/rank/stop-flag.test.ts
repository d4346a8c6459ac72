import { expect, test } from 'bun:test'
import { StopFlag } from './stop-flag.ts'

test('who has its memory sees that it was stopped', () => {
  const flag = new StopFlag()
  const there = new StopFlag(flag.memory)
  expect([flag.stopped, there.stopped]).toEqual([false, false])
  flag.stop()
  expect([flag.stopped, there.stopped]).toEqual([true, true])
})
