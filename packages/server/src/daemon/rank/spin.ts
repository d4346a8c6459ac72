import { availableParallelism } from 'node:os'

export const SPIN_CHOICES = ['auto', 'on', 'off'] as const
export type SpinChoice = (typeof SPIN_CHOICES)[number]

/** So many for each rank of the daemon: its own, and some for the engine's worker and for everyone else. */
const PROCESSORS_PER_RANK = 4

/**
 * Whether a rank keeps its processor while an update moves instead of sleeping until something happens: it answers sooner. Where
 * processors are few, it would keep others from working.
 */
export function ranksSpin(
  choice: SpinChoice,
  ranks: number,
  processors = availableParallelism(),
): boolean {
  return choice === 'auto' ? processors >= ranks * PROCESSORS_PER_RANK : choice === 'on'
}
