import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { selectDevices } from '@ckpt/cuda'
import { createRegistry, type Registry } from 'ckpt/daemon/registry/registry'
import type { DaemonOptions } from 'ckpt/daemon/types'
import { createUpdates, type Updates } from 'ckpt/daemon/updates/updates'

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
  }
}

/** Registry and updates of a daemon, which end with `stack`. */
export async function startParts(
  stack: AsyncDisposableStack,
  options: DaemonOptions,
): Promise<{ registry: Registry; updates: Updates }> {
  const registry = await createRegistry(options)
  stack.defer(() => registry.close())
  const updates = await createUpdates(options, registry)
  stack.defer(() => updates.close('the bench is over'))
  return { registry, updates }
}
