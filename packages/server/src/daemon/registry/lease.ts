import { CkptError } from '@ckpt/core'
import type { HeldVersion, VersionLease } from '../types.ts'
import type { Registry } from './registry.ts'

type Leasing = Pick<Registry, 'lease' | 'gather'>

/** What an update sends: from now on `metas` tells where it lies. @throws CkptError as `Registry.lease` */
export function leaseGathered(registry: Leasing, name: string): VersionLease {
  const lease = registry.lease(name)
  registry.gather(name)
  return lease
}

/**
 * For one of several daemons: that it holds nothing is no reason to use nothing of the others, and is returned.
 *
 * @param gathers as {@link leaseGathered}; else `metas` tells what it has told
 */
export function leaseAny(
  registry: Leasing,
  name: string,
  gathers: boolean,
): VersionLease | CkptError {
  try {
    return gathers ? leaseGathered(registry, name) : registry.lease(name)
  } catch (error) {
    const known = CkptError.wrap(error)
    if (isNothingHeld(known)) return known
    throw error
  }
}

/**
 * @param wanted null: any
 * @throws CkptError `checkpoint_not_found`
 */
export function requireVersion({ name, version }: HeldVersion, wanted: string | null): void {
  if (wanted === null || version === wanted) return
  const held = version === null ? 'without a version' : `as version ${version}`
  const message = `checkpoint '${name}' is held ${held}, not as version ${wanted}`
  throw new CkptError('checkpoint_not_found', message)
}

export function isNothingHeld({ code }: CkptError): boolean {
  return code === 'checkpoint_not_found' || code === 'checkpoint_empty'
}
