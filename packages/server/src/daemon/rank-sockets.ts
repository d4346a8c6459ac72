import {
  CkptError,
  type EngineTarget,
  type GatherAnswer,
  UPDATE_TIMEOUT_SECONDS,
  type UpdateRequest,
} from '@ckpt/core'
import { CallJoin, type CallSubject } from './call-join.ts'
import { log } from './log.ts'
import type { UpdateHandle } from './updates.ts'

export interface RankCallsOptions {
  /** All ranks that have a socket. */
  readonly ranks: readonly number[]
  /** How long a call waits for those of other ranks, from the last one that came. */
  readonly windowMs: number
  gather(name: string): GatherAnswer
  start(name: string, request: UpdateRequest): UpdateHandle
}

/** Path of a rank's own socket; `pattern` has one `%d`. */
export function rankSocketPath(pattern: string, rank: number): string {
  return pattern.replace('%d', String(rank))
}

/**
 * The calls of checkpoint-engine's clients: they talk to one server per rank and make the same call on each at about the same
 * time, because each server there takes part in a collective. All update calls carry the same `ranks`; only the first
 * rank of each inference group has an `update_url`, with the group's ranks.
 */
export class RankCalls {
  readonly #ranks: readonly number[]
  readonly #gathers: CallJoin<null, GatherAnswer>
  readonly #updates: CallJoin<UpdateRequest, UpdateHandle>

  constructor(options: RankCallsOptions) {
    const { ranks, windowMs } = options
    this.#ranks = ranks
    this.#gathers = new CallJoin({
      windowMs,
      start: ({ name }) => options.gather(name),
      settled: () => Promise.resolve(),
      same: () => true,
      covers: () => true,
    })
    this.#updates = new CallJoin({
      windowMs,
      start: (subject, calls, missing) => {
        const request = joinUpdates(calls, ranks)
        checkMissing(subject, request, missing, windowMs)
        return options.start(subject.name, request)
      },
      settled: ({ done }) => done,
      same: (first, second) => Bun.deepEquals(first, second, true),
      covers: (calls, later) => coversEngines(calls, later, ranks),
    })
  }

  gather(name: string, rank: number): Promise<GatherAnswer> {
    return this.#gathers.join({ name, variant: '', expected: this.#ranks }, rank, null)
  }

  /** One update for the calls of all `request.ranks` (all ranks when empty); rejects as `Updates.start` throws. */
  update(name: string, request: UpdateRequest, rank: number): Promise<UpdateHandle> {
    const expected = targetRanks(request, this.#ranks)
    const variant = expected.toSorted((a, b) => a - b).join(',')
    return this.#updates.join({ name, variant, expected }, rank, request)
  }

  /** The checkpoint has changed: a call that comes now is not a late one of an earlier round. */
  forget(name: string): void {
    this.#gathers.forget(name)
    this.#updates.forget(name)
  }

  close(error: CkptError): void {
    this.#gathers.close(error)
    this.#updates.close(error)
  }
}

/**
 * The one request for the calls of several ranks: the engines of all of them, the longest timeouts, everything else as the
 * first call says that names an engine.
 */
export function joinUpdates(
  calls: readonly UpdateRequest[],
  ranks: readonly number[],
): UpdateRequest {
  const [only] = calls
  if (calls.length === 1 && only !== undefined) return only
  const engines = new Map<string, EngineTarget>()
  for (const call of calls) {
    for (const target of enginesOf(call, ranks)) {
      const known = engines.get(engineKey(target))
      const joined = known === undefined ? target.ranks : [...known.ranks, ...target.ranks]
      engines.set(engineKey(target), { ...target, ranks: [...new Set(joined)] })
    }
  }
  const base = calls.find((call) => enginesOf(call, ranks).length > 0) ?? calls[0]
  const { update_url: _url, inference_group_ranks: _ranks, uds: _uds, ...rest } = base ?? {}
  const id = calls.find((call) => call.update_id !== undefined)?.update_id
  return {
    ...rest,
    engines: [...engines.values()],
    timeout: Math.max(...calls.map((call) => call.timeout ?? UPDATE_TIMEOUT_SECONDS)),
    ...(id === undefined ? {} : { update_id: id }),
  }
}

function checkMissing(
  { name }: CallSubject,
  request: UpdateRequest,
  missing: readonly number[],
  windowMs: number,
): void {
  if (missing.length === 0) return
  const who = `${missing.length === 1 ? 'rank' : 'ranks'} ${missing.join(', ')}`
  if (request.update_url != null || (request.engines ?? []).length > 0) {
    log.warn('update of {name} starts without a call of {who}', { name, who })
    return
  }
  // without an engine the update would only wait for workers that nobody tells of it
  throw new CkptError(
    'update_timeout',
    `${who} did not call update of ${name} within ${windowMs / 1000} s, and no call names an engine`,
  )
}

function coversEngines(
  calls: readonly UpdateRequest[],
  later: UpdateRequest,
  ranks: readonly number[],
): boolean {
  const started = calls.flatMap((call) => enginesOf(call, ranks))
  return enginesOf(later, ranks).every((wanted) =>
    started.some(
      (target) =>
        engineKey(target) === engineKey(wanted) &&
        wanted.ranks.every((rank) => target.ranks.includes(rank)),
    ),
  )
}

/** The engines of one call, checkpoint-engine's fields as the one-element form of `engines`. */
function enginesOf(call: UpdateRequest, ranks: readonly number[]): EngineTarget[] {
  const engines = [...(call.engines ?? [])]
  if (call.update_url != null) {
    const group = call.inference_group_ranks ?? []
    engines.push({
      url: call.update_url,
      ranks: [...(group.length > 0 ? group : targetRanks(call, ranks))],
      ...(call.uds == null ? {} : { uds: call.uds }),
      ...(call.engine === undefined ? {} : { engine: call.engine }),
    })
  }
  return engines
}

function engineKey({ url, uds }: EngineTarget): string {
  return `${uds ?? ''}\0${url}`
}

function targetRanks(request: UpdateRequest, ranks: readonly number[]): readonly number[] {
  const wanted = request.ranks ?? []
  return wanted.length > 0 ? [...new Set(wanted)] : ranks
}
