import { linkRate, rateOf, SEGMENT_BYTES, type TimedBytes } from '@ckpt/core'
import type { Library } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'

const MIB = 2 ** 20
/** Pinned host memory that a round copies at most: long enough that its beginning and its end do not count. */
export const MEASURED_BYTES = 64 * MIB
/** Device memory that a measurement takes for a moment, each copy the same. */
const TARGET_BYTES = SEGMENT_BYTES
/** With less free memory a device is left alone: its engine may want it. */
export const FREE_BYTES_MIN = 512 * MIB
const FIRST_BYTES = MIB
const GROWTH = 4
/** A round that would take longer is not made larger. */
const ROUND_MS_MAX = 20
const ROUNDS_MAX = 8
/** After the first one: a rate is kept for good, so it may not hang on a single moment of a busy machine. */
const ROUNDS_MIN = 3
const ROUNDS_MS_MAX = 40
const SYNC_MS = 2000

/**
 * Bytes per second from pinned host memory to the device; null: it was stopped, or the device has hardly any memory left. Blocks
 * for some tens of milliseconds, of which the copies take 40 at most unless the link is very slow; leaves nothing behind.
 */
export function measureH2d(
  library: Library,
  device: number,
  stopped: () => boolean,
): number | null {
  if (stopped() || library.deviceMemory(device).freeBytes < FREE_BYTES_MIN) return null
  using stack = new DisposableStack()
  const memory = library.memoryAlloc(device, TARGET_BYTES)
  stack.defer(() => library.memoryFree(memory))
  if (stopped()) return null
  const buffer = library.bufferAlloc(MEASURED_BYTES, 0)
  stack.defer(() => library.bufferFree(buffer))
  const stream = library.streamCreate(device)
  stack.defer(() => library.streamDestroy(stream))

  const round = (roundBytes: number): TimedBytes => {
    const beginMs = clockMs()
    for (let done = 0; done < roundBytes; done += TARGET_BYTES) {
      const bytes = Math.min(TARGET_BYTES, roundBytes - done)
      library.copyH2d(stream, memory, 0, buffer, done, bytes)
    }
    library.streamSync(stream, 0, SYNC_MS)
    return { bytes: roundBytes, seconds: (clockMs() - beginMs) / 1000 }
  }
  return rateOfRounds(round, stopped)
}

/** Rounds grow as long as they stay short. The first one only wakes the link, and a thread. */
function rateOfRounds(round: (bytes: number) => TimedBytes, stopped: () => boolean): number | null {
  let last = round(FIRST_BYTES)
  const endMs = clockMs() + ROUNDS_MS_MAX
  const later: TimedBytes[] = []
  while (later.length < ROUNDS_MIN || (later.length < ROUNDS_MAX && clockMs() < endMs)) {
    if (stopped()) return null
    last = round(nextBytes(last))
    later.push(last)
  }
  return linkRate(later)
}

function nextBytes(last: TimedBytes): number {
  const larger = Math.min(MEASURED_BYTES, last.bytes * GROWTH)
  const rate = rateOf(last)
  if (rate === null) return larger
  return (larger / rate) * 1000 <= ROUND_MS_MAX ? larger : last.bytes
}
