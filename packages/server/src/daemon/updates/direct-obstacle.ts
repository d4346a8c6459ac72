import type { EngineRecord } from './engines.ts'
import type { EngineSpec, UpdateSpec } from './spec.ts'

/** Why an update is not direct; null: nobody has said so, and it is nothing that a report has to tell. */
export interface NotDirectly {
  readonly told: string | null
}

interface KnownEngine {
  readonly spec: Pick<EngineSpec, 'url' | 'ranks'>
  /** vLLM's own weight transfer brings it the weights. */
  readonly isNative: boolean
  readonly record: Pick<EngineRecord, 'notDirect'>
}

/**
 * What stands in the way of a direct update before any engine is asked. Null: it may be tried. An engine is never asked that has
 * not said in an update that it understands: a worker that raises for a method that it does not have may leave the engine's ranks
 * out of step (design.md, section 7).
 */
export function directObstacle(
  { mode, ranks }: Pick<UpdateSpec, 'mode' | 'ranks'>,
  engines: readonly KnownEngine[],
): NotDirectly | null {
  const forced = mode === 'direct'
  if (!forced && mode !== 'auto') return { told: null }
  const contacted = engines.flatMap(({ spec }) => spec.ranks)
  const alone = ranks.find((rank) => !contacted.includes(rank))
  if (alone !== undefined)
    return { told: forced ? `no engine is contacted for rank ${alone}` : null }
  if (engines.some(({ isNative }) => isNative)) {
    return { told: "vLLM's own transfer does not tell where the weights lie" }
  }
  for (const { record, spec } of engines) {
    if (record.notDirect === null) continue
    const unsaid = `${spec.url} has taken no update of this daemon with ckpt_worker yet: send one without mode direct first`
    return { told: record.notDirect ?? (forced ? unsaid : null) }
  }
  return null
}
