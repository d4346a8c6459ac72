import type { HeldPart } from './versions.ts'

/** What goes so that something else fits. */
export interface Victims {
  readonly parts: readonly HeldPart[]
  /** The version that is being replaced is among them. */
  readonly previous: boolean
  /** Names of other checkpoints, each of which goes as a whole. */
  readonly evicted: readonly string[]
}

/**
 * What to drop so that `shortBytes` become free: first what is being replaced, then other checkpoints, the one not used for
 * longest first. Null: all of them together do not make the room, so nothing shall go.
 *
 * @param previous parts that the new one supersedes and no update holds
 * @param others all parts of each checkpoint that may go, if the user allows it
 */
export function chooseVictims(
  previous: readonly HeldPart[],
  others: readonly (readonly HeldPart[])[],
  shortBytes: number,
): Victims | null {
  const parts = [...previous]
  const evicted: string[] = []
  let bytes = pinnedBytes(previous)
  const oldest = others.filter((one) => one.every(isIdle)).sort((a, b) => lastUse(a) - lastUse(b))
  for (const checkpoint of oldest) {
    if (bytes >= shortBytes) break
    const freed = pinnedBytes(checkpoint)
    if (freed === 0) continue
    parts.push(...checkpoint)
    evicted.push(checkpoint[0]!.name)
    bytes += freed
  }
  if (parts.length === 0 || bytes < shortBytes) return null
  return { parts, previous: previous.length > 0, evicted }
}

function isIdle({ leases, reading }: HeldPart): boolean {
  return leases === 0 && !reading
}

function lastUse(parts: readonly HeldPart[]): number {
  return Math.max(...parts.map(({ usedAt }) => usedAt))
}

function pinnedBytes(parts: readonly HeldPart[]): number {
  return parts.reduce((total, { loaded }) => total + loaded.pinnedBytes, 0)
}
