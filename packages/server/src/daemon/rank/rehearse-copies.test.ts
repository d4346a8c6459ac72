import { expect, spyOn, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import { type Library, openLibrary, selectDevices } from '@ckpt/cuda'
import { CopyQueue } from './copy-queue.ts'
import { COPIED_BYTES, rehearseCopies } from './rehearse-copies.ts'

/** @returns the objects that are left, and how many batches were copied */
function rehearsed(runs: number, stopped: () => boolean): { left: number; batches: number } {
  const library: Library = openLibrary(selectDevices('host:1', null).library)
  const batch = spyOn(library, 'copyH2dBatch')
  const buffer = library.bufferAlloc(COPIED_BYTES, 0)
  try {
    rehearseCopies(library, 0, buffer, runs, stopped)
    return { left: library.liveObjects() - 1, batches: batch.mock.calls.length }
  } finally {
    library.bufferFree(buffer)
    batch.mockRestore()
  }
}

test('each run copies rows, what is contiguous and what is gathered, and nothing is left', () => {
  // eight groups on two streams, and what is gathered
  expect(rehearsed(3, () => false)).toEqual({ left: 0, batches: 3 * 17 })
})

test('an update that comes ends it', () => {
  expect(rehearsed(3, () => true)).toEqual({ left: 0, batches: 0 })
  let asked = 0
  const { left, batches } = rehearsed(3, () => ++asked > 2)
  expect(left).toBe(0)
  expect(batches).toBeLessThan(17)
})

test('copies that do not end are given up', () => {
  const complete = spyOn(CopyQueue.prototype, 'takeComplete').mockImplementation(() => {})
  try {
    expect(() => rehearsed(1, () => false)).toThrow(CkptError)
  } finally {
    complete.mockRestore()
  }
})
