import { randomUUID } from 'node:crypto'
import {
  CkptError,
  type EngineTarget,
  type Failure,
  NATIVE_IPC,
  OPEN_TIMEOUT_SECONDS,
  PAUSE_TIMEOUT_SECONDS,
  type RingMode,
  UPDATE_TIMEOUT_SECONDS,
  type UpdateRequest,
} from '@ckpt/core'
import type { EngineKind, PauseMode } from '../../engines/adapter.ts'
import type { Ranks } from '../rank/handle.ts'
import type { DaemonOptions } from '../types.ts'
import { checkAllowed } from './allowed-engines.ts'
import { engineKey } from './engine-key.ts'

/** The method of checkpoint-engine's worker extension, and of ours. */
const ENGINE_METHOD = 'update_weights_from_ipc'

export interface EngineSpec {
  /** See {@link engineKey}. */
  readonly key: string
  readonly url: string
  readonly uds: string | null
  /** null: to be detected. */
  readonly kind: EngineKind | null
  /** In the order of the engine's workers. */
  readonly ranks: readonly number[]
  /** The daemon that contacts it: that of the first of its ranks. */
  readonly node: number
  /**
   * Whether vLLM's own weight transfer brings the weights: it was asked for, or it may where the engine has no worker extension.
   * Absent: a worker extension's method, or a route.
   */
  readonly native?: 'asked' | 'may'
}

/** An engine that an update of the survivors does without: one of its ranks, which the failure names, is gone. */
export interface LeftOutEngine {
  readonly spec: EngineSpec
  readonly failure: Failure
}

/** A checked update request with every default filled in. */
export interface UpdateSpec {
  readonly id: string
  readonly checkpoint: string
  /** Ascending. */
  readonly ranks: readonly number[]
  /** Empty: nobody is contacted and the map is published. */
  readonly engines: readonly EngineSpec[]
  readonly leftOut: readonly LeftOutEngine[]
  readonly timeoutMs: number
  readonly openMs: number
  readonly pauseMs: number
  /** null: engines are not paused. */
  readonly pause: PauseMode | null
  readonly mode: 'auto' | RingMode | 'direct'
  readonly method: string
  readonly weightVersion: string | null
  /** The only version of the checkpoint that is wanted; null: the newest, whichever it is. */
  readonly version: string | null
}

/**
 * Checks a request against this daemon.
 *
 * @throws CkptError `bad_request`, `engine_not_allowed`, `not_supported`, `node_lost`
 */
export function makeSpec(
  checkpoint: string,
  request: UpdateRequest,
  options: DaemonOptions,
  known: Pick<Ranks, 'all' | 'links' | 'lost'>,
): UpdateSpec {
  const mode = request.mode ?? 'auto'
  const ranks = ranksOf(request, known)
  const pause = request.pause ?? 'none'
  const method = request.engine_method ?? ENGINE_METHOD
  const found = enginesOf(request, ranks, options, known)
  const { leftOut } = found
  const engines = found.engines.map((one) => withNative(one, request.engine_method, mode))
  return {
    id: request.update_id ?? randomUUID(),
    checkpoint,
    ranks,
    engines,
    leftOut,
    timeoutMs: (request.timeout ?? UPDATE_TIMEOUT_SECONDS) * 1000,
    openMs: (request.open_timeout ?? OPEN_TIMEOUT_SECONDS) * 1000,
    pauseMs: (request.pause_timeout ?? PAUSE_TIMEOUT_SECONDS) * 1000,
    pause: pause === 'none' ? null : pause,
    mode,
    method,
    weightVersion: request.weight_version ?? null,
    version: request.version ?? null,
  }
}

/** vLLM's own transfer is spoken by the daemon itself, as the one worker of an engine of its host. @throws CkptError `not_supported` */
function withNative(
  engine: EngineSpec,
  method: string | undefined,
  mode: UpdateSpec['mode'],
): EngineSpec {
  const { url, kind, ranks, node } = engine
  if (method === undefined) {
    const may = (kind === null || kind === 'vllm') && ranks.length === 1 && node === 0
    return may && mode !== 'direct' ? { ...engine, native: 'may' } : engine
  }
  if (method !== NATIVE_IPC) return engine
  if (kind !== null) requireNative(url, kind)
  if (ranks.length !== 1) {
    throw notNative(`it is for engines of one rank, and ${url} has ${ranks.length}`)
  }
  if (node !== 0) throw notNative(`${url} is an engine of another host`)
  if (mode === 'direct')
    throw notNative('mode direct needs ckpt_worker: nothing tells where the weights lie')
  return { ...engine, native: 'asked' }
}

/** Of an engine that may not be updated by vLLM's own transfer: what stands in the way, and what to do. */
export function whyNotNative({ node, ranks }: EngineSpec): string {
  if (ranks.length > 1) {
    return `its own weight transfer is used for engines of one rank, and this one has ${ranks.length}: start it with a worker extension`
  }
  return node === 0
    ? 'its own weight transfer is used where no method is asked for: leave --engine-method out'
    : 'its own weight transfer is used by a daemon of its host: ask that one for the update, or start it with a worker extension'
}

/** @throws CkptError `not_supported` */
export function requireNative(url: string, kind: EngineKind): void {
  if (kind !== 'vllm') throw notNative(`it is vLLM's, and ${url} is ${kind}`)
}

function notNative(why: string): CkptError {
  return new CkptError('not_supported', `engine_method ${NATIVE_IPC}: ${why}`)
}

function ranksOf(
  { ranks: asked = [], require = 'all' }: Pick<UpdateRequest, 'ranks' | 'require'>,
  ranks: Pick<Ranks, 'all' | 'links' | 'lost'>,
): number[] {
  if (asked.length === 0) return ranks.all(require)
  const known = ranks.links.map(({ rank }) => rank.rank)
  const living = require === 'all' ? asked : asked.filter((rank) => ranks.lost(rank) === null)
  const unknown = living.find((rank) => !known.includes(rank))
  if (unknown !== undefined) {
    // one that is lost says so
    if (require === 'all') ranks.all(require)
    throw new CkptError('bad_request', `there is no rank ${unknown}: ${known.length} ranks exist`)
  }
  const lost = living.length === 0 ? ranks.lost(asked[0] as number) : null
  if (lost !== null) throw CkptError.from(lost.failure)
  requireDistinct('ranks', asked)
  return [...living].sort((a, b) => a - b)
}

function requireDistinct(what: string, ranks: readonly number[]): void {
  const twice = ranks.find((rank, i) => ranks.indexOf(rank) !== i)
  if (twice !== undefined) throw new CkptError('bad_request', `${what}: rank ${twice} twice`)
}

/** The old fields are the form with one engine. */
function targetsOf(request: UpdateRequest): readonly EngineTarget[] {
  const { update_url: url, uds, inference_group_ranks: group, engines, engine } = request
  if (url === undefined || url === null) {
    if ((group?.length ?? 0) > 0) {
      throw new CkptError('bad_request', 'inference_group_ranks are of update_url, which is null')
    }
    return (engines ?? []).map((one) => ({ engine, ...one }))
  }
  if (engines !== undefined && engines.length > 0) {
    throw new CkptError('bad_request', 'update_url and engines exclude each other')
  }
  return [{ url, ranks: group ?? [], engine, ...(uds ? { uds } : {}) }]
}

function enginesOf(
  request: UpdateRequest,
  ranks: readonly number[],
  options: DaemonOptions,
  known: Pick<Ranks, 'all' | 'links' | 'lost'>,
): Pick<UpdateSpec, 'engines' | 'leftOut'> {
  const targets = targetsOf(request)
  const taken = new Map<number, string>()
  const leftOut = request.require === 'survivors' ? leftOutOf(targets, options, known) : []
  const engines = targets.flatMap((target) => {
    if (leftOut.some(({ target: one }) => one === target)) return []
    if (target.ranks.length === 0 && targets.length > 1) {
      throw new CkptError(
        'bad_request',
        `ranks of ${target.url}: each of several engines needs them`,
      )
    }
    const own = target.ranks.length === 0 ? ranks : target.ranks
    for (const rank of own) {
      if (!ranks.includes(rank)) {
        throw new CkptError('bad_request', `rank ${rank} of ${target.url} is not in this update`)
      }
      const other = taken.get(rank)
      if (other !== undefined) {
        throw new CkptError('bad_request', `rank ${rank} belongs to ${other} and to ${target.url}`)
      }
      taken.set(rank, target.url)
    }
    const node = known.links.find(({ rank }) => rank.rank === own[0])?.node ?? 0
    return [engineOf(target, own, options, node)]
  })
  const [first] = leftOut
  if (first !== undefined && engines.length === 0) throw CkptError.from(first.failure)
  return { engines, leftOut: leftOut.map(({ spec, failure }) => ({ spec, failure })) }
}

function leftOutOf(
  targets: readonly EngineTarget[],
  options: DaemonOptions,
  known: Pick<Ranks, 'all' | 'links' | 'lost'>,
): (LeftOutEngine & { readonly target: EngineTarget })[] {
  return targets.flatMap((target) => {
    // without ranks of its own it has all
    const missing = target.ranks.length === 0 ? missingOf(known) : null
    if (missing !== null) {
      const own = known.links.map(({ rank }) => rank.rank)
      return [{ target, spec: engineOf(target, own, options, 0), failure: missing }]
    }
    const lost = target.ranks.flatMap((rank) => known.lost(rank) ?? [])[0]
    if (lost === undefined) return []
    const [first] = target.ranks
    const living = known.links.find(({ rank }) => rank.rank === first)
    const node = living?.node ?? (known.lost(first as number)?.node as number)
    const spec = engineOf(target, target.ranks, options, node)
    return [{ target, spec, failure: lost.failure }]
  })
}

/** Null: every rank that belongs to the cluster is there. */
function missingOf(known: Pick<Ranks, 'all'>): Failure | null {
  try {
    known.all('all')
    return null
  } catch (error) {
    return CkptError.wrap(error).failure
  }
}

function engineOf(
  target: EngineTarget,
  ranks: readonly number[],
  options: DaemonOptions,
  node: number,
): EngineSpec {
  const { url, engine } = target
  const uds = target.uds ?? null
  // another daemon asks its own list
  if (node === 0) checkAllowed({ url, uds }, options.allowedEngines)
  return {
    key: engineKey({ url, uds, node }),
    url,
    uds,
    kind: engine === undefined || engine === 'auto' ? null : engine,
    ranks: [...ranks],
    node,
  }
}
