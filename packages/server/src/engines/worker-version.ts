import type { Dialect } from '@ckpt/core'

/** What the worker of a release of checkpoint-engine speaks; see `docs/engines.md`. Null: it is not known, or no release. */
export function dialectOfVersion(version: unknown): Dialect | null {
  const found = typeof version === 'string' ? /^0\.(\d+)\.(\d+)$/.exec(version) : null
  if (found === null) return null
  const [minor, patch] = [Number(found[1]), Number(found[2])]
  switch (minor) {
    case 1:
      return 'D1'
    case 2:
      return patch === 0 ? 'D1' : patch === 1 ? 'D2' : 'D3'
    case 3:
      return 'D3'
    case 4:
      return 'D4'
    default:
      return null
  }
}
