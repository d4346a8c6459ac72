import { ptr } from 'bun:ffi'
import { openLibc } from './libc.ts'

/** Of Linux. */
const CLOCK_MONOTONIC = 1
/** The shortest of some readings says best how two clocks stand to each other. */
const READINGS = 5

/**
 * `performance.now()` begins with its thread. What `performance.timeOrigin` says of that moment is the time of day, which may be
 * set while the process runs: threads that began before and after would be apart by that.
 */
let originMs = readOriginMs()

/** Monotonic milliseconds, the same clock in every thread of the process. */
export function clockMs(): number {
  return originMs + performance.now()
}

/** For a simulation with a `performance.now()` of its own. Returns what was there. */
export function setClockOrigin(ms: number): number {
  const before = originMs
  originMs = ms
  return before
}

function readOriginMs(): number {
  const { clock_gettime: read } = openLibc({
    clock_gettime: { args: ['i32', 'ptr'], returns: 'i32' },
  })
  const time = new BigInt64Array(2)
  let shortestMs = Number.POSITIVE_INFINITY
  let origin = 0
  for (let reading = 0; reading < READINGS; reading++) {
    const beginMs = performance.now()
    read(CLOCK_MONOTONIC, ptr(time))
    const tookMs = performance.now() - beginMs
    if (tookMs >= shortestMs) continue
    shortestMs = tookMs
    const [seconds = 0n, nanoseconds = 0n] = time
    origin = Number(seconds) * 1e3 + Number(nanoseconds) / 1e6 - (beginMs + tookMs / 2)
  }
  return origin
}
