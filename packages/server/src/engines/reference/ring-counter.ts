import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import type { RingCounter } from '@ckpt/core/engine/pickle-reader'

/** torch's `RefcountedMapAllocator` keeps its own count there. */
const HEADER_BYTES = 64
const COUNTER_BYTES = 8

/**
 * Tells the owner of a ring that this process has unmapped it, as torch does when the tensor dies: memory that torch has shared
 * stays in use, whatever its owner frees, until its counter is 0. Not atomic, as in torch: one process has a counter for itself.
 * An owner that has gone, and its file with it, is nobody to tell.
 */
export function countDown({ file, index }: RingCounter): void {
  let fd: number
  try {
    fd = openSync(`/dev/shm${file}`, 'r+')
  } catch {
    return
  }
  try {
    const at = HEADER_BYTES + index * COUNTER_BYTES
    const count = new BigInt64Array(1)
    if (readSync(fd, count, 0, COUNTER_BYTES, at) !== COUNTER_BYTES) return
    count[0] = (count[0] ?? 0n) - 1n
    writeSync(fd, count, 0, COUNTER_BYTES, at)
  } finally {
    closeSync(fd)
  }
}
