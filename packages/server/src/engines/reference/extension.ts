import type { UpdateWay } from './way.ts'
import type { RankOutcome } from './rank-thread.ts'

/** The methods of `ckpt_worker/vllm.py` that take an update. */
const WAYS: Readonly<Record<string, UpdateWay>> = {
  update_weights_from_ipc: 'ring',
  ckpt_direct: 'direct',
}

/** How the method of a collective RPC takes an update; null: the workers do not have it. */
export function wayOf(method: string, direct: boolean): UpdateWay | null {
  const way = Object.hasOwn(WAYS, method) ? (WAYS[method] as UpdateWay) : null
  return way === 'direct' && !direct ? null : way
}

/** What the worker extension returns for an update, which it does also for one that failed. */
export function extensionResult(outcome: RankOutcome, way: UpdateWay): object {
  const { error, phase, torn, seconds, tensors, placed } = outcome
  const common = { ok: error === null, error, phase, torn }
  if (way === 'direct') return { ...common, mode: 'direct', placed, seconds }
  return {
    ...common,
    mode: 'recorded',
    replayed: tensors,
    ordinary: 0,
    reasons: {},
    not_direct: torn ? 'the last update has failed half way' : outcome.notPlaced,
    seconds,
  }
}
