import { CkptError, type GatherAnswer, type UpdateRequest } from '@ckpt/core'
import { CallJoin } from './call-join.ts'
import {
  coversEngines,
  joinUpdates,
  namesEngine,
  type RankCall,
  targetRanks,
} from './join-updates.ts'
import { log } from '../log.ts'
import type { UpdateHandle } from '../updates/updates.ts'

export interface RankCallsOptions {
  /** All ranks that have a socket. */
  readonly ranks: readonly number[]
  /** How long a call waits for those of other ranks, from the last one that came. */
  readonly windowMs: number
  gather(name: string): Promise<GatherAnswer>
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
  readonly #gathers: CallJoin<null, Promise<GatherAnswer>>
  readonly #updates: CallJoin<RankCall, UpdateHandle>

  constructor(options: RankCallsOptions) {
    const { ranks, windowMs } = options
    this.#ranks = ranks
    this.#gathers = new CallJoin({
      windowMs,
      start: ({ name }) => options.gather(name),
      settled: (answer) =>
        answer.then(
          () => {},
          () => {},
        ),
      same: () => true,
      covers: () => true,
    })
    this.#updates = new CallJoin({
      windowMs,
      start: ({ name }, calls, missing) => {
        const request = joinUpdates(calls, ranks)
        if (missing.length > 0) checkMissing(name, request, missing, windowMs)
        return options.start(name, request)
      },
      settled: ({ done }) => done,
      same: (first, second) => Bun.deepEquals(first, second, true),
      covers: coversEngines,
    })
  }

  async gather(name: string, rank: number): Promise<GatherAnswer> {
    return await this.#gathers.join({ name, variant: '', expected: this.#ranks }, rank, null)
  }

  /** One update for the calls of all `request.ranks` (all ranks when empty); rejects as `Updates.start` throws. */
  update(name: string, request: UpdateRequest, rank: number): Promise<UpdateHandle> {
    const expected = targetRanks(request, this.#ranks)
    const variant = expected.toSorted((a, b) => a - b).join(',')
    return this.#updates.join({ name, variant, expected }, rank, { rank, request })
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

function checkMissing(
  name: string,
  request: UpdateRequest,
  missing: readonly number[],
  windowMs: number,
): void {
  const who = `${missing.length === 1 ? 'rank' : 'ranks'} ${missing.join(', ')}`
  if (namesEngine(request)) {
    log.warn('update of {name} starts without a call of {who}', { name, who })
    return
  }
  // without an engine the update would only wait for workers that nobody tells of it
  throw new CkptError(
    'update_timeout',
    `${who} did not call update of ${name} within ${windowMs / 1000} s, and no call names an engine`,
  )
}
