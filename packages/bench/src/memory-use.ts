import { readFileSync } from 'node:fs'
import type { Handle, Library } from '@ckpt/cuda'

const SAMPLE_MS = 2

export interface MeasuredUse<T> {
  readonly value: T
  readonly seconds: number
  /** The most that was in use on the device meanwhile, beside what was in use before. */
  readonly deviceBytes: number
}

/** Times the work and looks at the device's memory meanwhile. */
export async function measureUse<T>(
  library: Library,
  device: Handle,
  work: () => Promise<T>,
): Promise<MeasuredUse<T>> {
  const used = () => {
    const { freeBytes, totalBytes } = library.deviceMemory(device)
    return totalBytes - freeBytes
  }
  const before = used()
  let most = before
  const timer = setInterval(() => {
    most = Math.max(most, used())
  }, SAMPLE_MS)
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
