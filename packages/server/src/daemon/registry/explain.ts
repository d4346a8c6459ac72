import { CkptError } from '@ckpt/core'
import { HostMemoryError } from '../memory/host-memory-error.ts'
import type { LentBuffers } from './lent.ts'
import type { Versions } from './versions.ts'

/** Adds to a `host_memory_exhausted` of checkpoint `name` who holds what; other errors stay as they are. */
export function explainMemory(
  error: unknown,
  name: string,
  versions: Versions,
  lent: LentBuffers,
): CkptError {
  if (!(error instanceof HostMemoryError)) return CkptError.wrap(error)
  const holders = versions.names.flatMap((holder) =>
    versions.all(holder).map((part) => {
      const version = part.version === null ? '' : ` version ${part.version}`
      const use = part.leases > 0 ? ' (an update uses it)' : ''
      return `'${holder}'${version} ${part.loaded.pinnedBytes} bytes${use}`
    }),
  )
  for (const { name: holder, loaded } of versions.failing) {
    holders.push(`'${holder}' ${loaded.pinnedBytes} bytes (an update that fails uses it)`)
  }
  for (const { name: holder, bytes } of lent.unused(null)) {
    holders.push(`'${holder}' lent to a trainer ${bytes} bytes`)
  }
  const held = holders.length === 0 ? 'nothing is held' : `held are ${holders.join(', ')}`
  return new CkptError('host_memory_exhausted', `checkpoint '${name}': ${error.message}; ${held}`)
}
