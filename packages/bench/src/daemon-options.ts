import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import type { DaemonOptions } from 'ckpt/daemon/types'

/** Options of a daemon with this many ranks, its state below `dir`. */
export function daemonOptions(devices: string, ranks: number | null, dir: string): DaemonOptions {
  const stateDir = join(dir, 'state')
  mkdirSync(stateDir, { recursive: true, mode: 0o700 })
  return {
    ...selectDevices(devices, ranks),
    allowedDirs: null,
    allowedEngines: null,
    hostMemoryBytes: null,
    evict: false,
    inPlace: 'never',
    stateDir,
    ringBytes: null,
    bucketBytes: null,
    memoryFraction: 0.9,
    spin: 'auto',
    broadcast: 'copies',
    idleCommunicatorMs: 600_000,
  }
}
