import { atLeast, type Claim } from './claims.ts'
import type { DirectWorkload } from './direct-workloads.ts'
import { percentOfLimit, type Row } from './row.ts'
import type { WorkloadModel } from './workloads.ts'

/** How the copies are made. */
export interface Way {
  /** `tp 8`. */
  readonly name: string
  readonly ranks: number
  readonly gathers: boolean
  /** As the daemon makes them; else the same work done otherwise, to compare with. */
  readonly daemon: boolean
}

const DAEMON: readonly Way[] = [1, 8].map((ranks) => {
  return { name: `tp ${ranks}`, ranks, gathers: true, daemon: true }
})
const NOTHING_GATHERED: Way = {
  name: 'tp 1, nothing gathered',
  ranks: 1,
  gathers: false,
  daemon: false,
}
const OTHERWISE: Readonly<Partial<Record<WorkloadModel, readonly Way[]>>> = {
  moe: [NOTHING_GATHERED],
}
/**
 * Percent of the pinned H2D rate of the same run, by the number of ranks. Nothing of `moe` on eight: vLLM refuses it, because its
 * blocks of scales do not divide among them, and its rows have 96 bytes.
 */
const SHARE_LEAST: Readonly<Record<WorkloadModel, Readonly<Record<number, number>>>> = {
  dense: { 1: 94, 8: 90 },
  moe: { 1: 93 },
  'moe-bf16': { 1: 93, 8: 90 },
}

/** The daemon's; of a whole model the others too: they are questions to a device. */
export function waysOf({ kind, model }: DirectWorkload): readonly Way[] {
  return model ? [...DAEMON, ...(OTHERWISE[kind] ?? [])] : DAEMON
}

/** What is asked of the daemon's way with a whole model. */
export function claimsOf(
  { kind, model }: DirectWorkload,
  way: Way,
  row: Pick<Row, 'case' | 'gb_per_s' | 'limit_gb_per_s'>,
): Claim[] {
  const least = SHARE_LEAST[kind][way.ranks]
  if (!model || !way.daemon || least === undefined) return []
  const share = percentOfLimit(row) ?? Number.NaN
  return [atLeast(`direct ${row.case}: of the pinned H2D rate`, share, least, '%')]
}
