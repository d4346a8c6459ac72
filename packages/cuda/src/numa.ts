import { readdirSync } from 'node:fs'

/** NUMA nodes of this machine; null where the kernel does not say. */
export function numaNodeCount(root = '/sys/devices/system/node'): number | null {
  try {
    return readdirSync(root).filter((name) => /^node\d+$/.test(name)).length || null
  } catch {
    return null
  }
}
