import { type EngineTarget, UPDATE_TIMEOUT_SECONDS, type UpdateRequest } from '@ckpt/core'

/** An update call that came over a rank's own socket. */
export interface RankCall {
  readonly rank: number
  readonly request: UpdateRequest
}

/**
 * The one request for the calls of several ranks: the engines of all of them, the longest timeout, everything else as the
 * first call says that names an engine.
 *
 * A call may name an engine without its ranks (`inference_group_ranks` []): checkpoint-engine then posts the map of all ranks
 * and each worker looks its own device up. Where that is the only engine, all ranks are meant; beside others, those from
 * the calling rank up to the next that names an engine.
 *
 * @param ranks all ranks of the daemon
 */
export function joinUpdates(calls: readonly RankCall[], ranks: readonly number[]): UpdateRequest {
  const [first] = calls
  if (calls.length === 1 && first !== undefined) return first.request
  const engines = new Map<string, EngineTarget>()
  for (const target of assignRanks(calls, ranks)) {
    const known = engines.get(engineKey(target))?.ranks ?? []
    const joined = [...new Set([...known, ...target.ranks])]
    engines.set(engineKey(target), { ...target, ranks: joined })
  }
  const base = calls.find(({ request }) => namesEngine(request)) ?? first
  const {
    update_url: _url,
    inference_group_ranks: _group,
    uds: _uds,
    ...rest
  } = base?.request ?? {}
  const id = calls.find(({ request }) => request.update_id !== undefined)?.request.update_id
  const timeouts = calls.map(({ request }) => request.timeout ?? UPDATE_TIMEOUT_SECONDS)
  return {
    ...rest,
    engines: [...engines.values()],
    timeout: Math.max(...timeouts),
    ...(id === undefined ? {} : { update_id: id }),
  }
}

/** Whether an update that has started for `calls` contacts the engines of a later call too. */
export function coversEngines(calls: readonly RankCall[], later: RankCall): boolean {
  const started = calls.flatMap(({ request }) => enginesOf(request))
  return enginesOf(later.request).every((wanted) => {
    const same = started.filter((target) => engineKey(target) === engineKey(wanted))
    const ranks = new Set(same.flatMap((target) => target.ranks))
    const all = same.some((target) => target.ranks.length === 0)
    return same.length > 0 && (all || wanted.ranks.every((rank) => ranks.has(rank)))
  })
}

export function namesEngine(request: UpdateRequest): boolean {
  return enginesOf(request).length > 0
}

/** The ranks that the update is for. */
export function targetRanks(request: UpdateRequest, ranks: readonly number[]): readonly number[] {
  const wanted = request.ranks ?? []
  return wanted.length > 0 ? [...new Set(wanted)] : ranks
}

/** The engines of all calls, each with its ranks. */
function assignRanks(calls: readonly RankCall[], ranks: readonly number[]): EngineTarget[] {
  const named = calls.flatMap(({ rank, request }) =>
    enginesOf(request).map((target) => ({ rank, request, target })),
  )
  const alone = new Set(named.map(({ target }) => engineKey(target))).size === 1
  const claimed = new Set(named.flatMap(({ target }) => target.ranks))
  return named.map(({ rank, request, target }) => {
    if (target.ranks.length > 0) return target
    const all = targetRanks(request, ranks)
    if (alone) return { ...target, ranks: [...all] }
    const next = Math.min(...named.map((other) => other.rank).filter((other) => other > rank))
    const own = all.filter((one) => one >= rank && one < next && !claimed.has(one))
    return { ...target, ranks: own }
  })
}

/** The engines of one call; checkpoint-engine's fields are the one-element form of `engines`. No ranks: not told. */
function enginesOf(request: UpdateRequest): EngineTarget[] {
  const engines = [...(request.engines ?? [])]
  const { update_url: url, inference_group_ranks: group, uds, engine } = request
  if (url == null) return engines
  engines.push({
    url,
    ranks: [...(group ?? [])],
    ...(uds == null ? {} : { uds }),
    ...(engine === undefined ? {} : { engine }),
  })
  return engines
}

function engineKey({ url, uds }: EngineTarget): string {
  return `${uds ?? ''}\0${url}`
}
