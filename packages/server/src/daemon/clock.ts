/** Monotonic milliseconds, the same clock in every thread of the process. */
export function clockMs(): number {
  return performance.timeOrigin + performance.now()
}
