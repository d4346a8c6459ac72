import { readFileSync } from 'node:fs'
import type { Library } from '@ckpt/cuda'

const SAMPLE_MS = 2

export interface MeasuredUse<T> {
  readonly value: T
  readonly seconds: number
  /** The most that was in use on the device meanwhile, beside what was in use before. */
  readonly deviceBytes: number
}

/** Times the work and, with a device, looks at its memory meanwhile. */
export async function measureUse<T>(
  library: Library,
  device: number | null,
  work: () => Promise<T>,
): Promise<MeasuredUse<T>> {
  const used = () => {
    if (device === null) return 0
    const { freeBytes, totalBytes } = library.deviceMemory(device)
    return totalBytes - freeBytes
  }
  const before = used()
  let most = before
  const look = () => {
    most = Math.max(most, used())
  }
  const timer = device === null ? undefined : setInterval(look, SAMPLE_MS)
  try {
    const beginMs = performance.now()
    const value = await work()
    const seconds = (performance.now() - beginMs) / 1000
    return { value, seconds, deviceBytes: most - before }
  } finally {
    clearInterval(timer)
  }
}

/** Resident memory of a process, with what it maps of shared memory and files. */
export function residentBytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? Number.NaN) * 1024
}
