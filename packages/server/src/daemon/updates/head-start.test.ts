import { expect, test } from 'bun:test'
import { headStartMs } from './head-start.ts'

const GB = 1e9

test.each([
  // bytes, read so far, after ms, wait
  ['everything is there', 16 * GB, 16 * GB, 1, 0],
  ['nobody knows how fast yet', 16 * GB, 0, 2, 3],
  ['nothing has come at all', 16 * GB, 0, 50, 5],
  ['a file system in memory', 16 * GB, 0.19 * GB, 5, 0],
  ['a page cache that is slower than sending', 16 * GB, 1 * GB, 100, 0],
  ['a disk: 16 GB at 2 GB/s take 8 s, sending them 0.64 s', 16 * GB, 2 * GB, 1000, 200],
  ['the same, when 1.64 s of it are left', 16 * GB, 12.72 * GB, 6360, 0],
  ['the same, shortly before', 16 * GB, 12.7 * GB, 6350, 10],
])('%s', (_, bytes, bytesDone, elapsedMs, waitMs) => {
  expect(Math.round(headStartMs({ bytes, bytesDone }, elapsedMs))).toBe(waitMs)
})

test('a small checkpoint on a slow disk is sent as it comes', () => {
  expect(headStartMs({ bytes: 40e6, bytesDone: 1e6 }, 25)).toBe(0)
})
