import { CkptError, type Failure, type ReloadCounts } from '@ckpt/core'
import type { EngineAdapter, PauseMode, UpdateVerdict } from './adapter.ts'
import type { EngineClient, EngineReply } from './client.ts'
import { isMissing, lookAt, must, mustPause } from './routes.ts'
import { versionText } from './vllm-version.ts'
import { engineWords } from './words.ts'

/** Of an engine's answer: what is kept of it. */
const REASONS_MAX = 32
const REASON_MAX = 300

/** vLLM >= 0.10.2 with `VLLM_SERVER_DEV_MODE=1` and a worker extension; `ckpt engine` speaks it too. */
export const vllm: EngineAdapter = {
  kind: 'vllm',
  updatePath: '/collective_rpc',

  look: (client, signal) => lookAt(client, '/health', signal),

  updateBody: ({ map, method, timeoutSeconds }) => ({
    method,
    args: [map],
    timeout: timeoutSeconds,
  }),

  judge(reply: EngineReply): UpdateVerdict {
    if (!reply.ok) {
      const structured = resultsOf(reply.json) !== null
      return { ok: false, message: reply.words, structured, reload: null }
    }
    const results = resultsOf(reply.json)
    const failed = results?.filter((one) => !one.ok) ?? []
    const message = engineWords(failed, '') || 'a worker of the engine failed'
    const reload = reloadOf(results ?? [])
    const notDirect = notDirectOf(results ?? [])
    const torn = tornOf(results ?? [])
    return {
      ok: failed.length === 0,
      message,
      structured: results !== null,
      reload,
      ...(torn === undefined ? {} : { torn }),
      ...(notDirect === undefined ? {} : { notDirect }),
    }
  },

  async pause(client, mode: PauseMode, signal, posting): Promise<boolean> {
    const asked = await client.get('/is_paused', signal)
    if (asked.ok && (asked.json as { is_paused?: unknown } | null)?.is_paused === true) return false
    await posting.beforePost(false)
    const reply = await client.post(`/pause?mode=${mode}&clear_cache=true`, undefined, signal)
    mustPause(client, '/pause', reply, posting)
    return true
  },

  async resume(client: EngineClient, signal: AbortSignal): Promise<void> {
    must(await client.post('/resume', undefined, signal), 'resume')
  },

  /**
   * A worker that raises out of a collective RPC leaves the answers of the others queued, and every later RPC gets those. That is
   * vLLM's own executor, which is told by its route /version: other servers that speak /collective_rpc have none.
   */
  async outOfStep(client, signal): Promise<boolean> {
    try {
      return (await versionText(client, signal)) !== null
    } catch (error) {
      // no answer in time: it may be stuck in that very call; no connection: it has ended
      return !(error instanceof CkptError && error.code === 'engine_unreachable')
    }
  },

  /** Blocks of the prefix cache were computed with the old weights. */
  async settle(client, _paused, signal): Promise<Failure | null> {
    const reply = await client.post('/reset_prefix_cache', undefined, signal)
    if (reply.ok || isMissing(reply)) return null
    const message = `/reset_prefix_cache answered ${reply.status}: ${reply.words}`
    return { code: 'engine_failed', message, phase: 'post' }
  },
}

/** What our worker extension returns per worker instead of raising. */
interface WorkerResult {
  readonly ok: boolean
  readonly replayed?: unknown
  readonly ordinary?: unknown
  readonly reasons?: unknown
  readonly not_direct?: unknown
  readonly torn?: unknown
}

/** Null unless every result has our extension's form; checkpoint-engine's returns None. */
function resultsOf(json: unknown): WorkerResult[] | null {
  const { results } = (json ?? {}) as { results?: unknown }
  if (!Array.isArray(results) || results.length === 0) return null
  const ours = results.filter((one): one is WorkerResult => typeof one?.ok === 'boolean')
  return ours.length === results.length ? ours : null
}

/** Sums over the workers. Null: one of them does not say. */
function reloadOf(results: readonly WorkerResult[]): ReloadCounts | null {
  if (results.length === 0) return null
  const counts = { replayed: 0, ordinary: 0 }
  const reasons = new Map<string, number>()
  for (const result of results) {
    const { replayed, ordinary } = result
    if (!isCount(replayed) || !isCount(ordinary)) return null
    counts.replayed += replayed
    counts.ordinary += ordinary
    for (const [reason, count] of Object.entries(result.reasons ?? {})) {
      const words = reason.slice(0, REASON_MAX)
      if (!isCount(count) || (reasons.size === REASONS_MAX && !reasons.has(words))) continue
      reasons.set(words, (reasons.get(words) ?? 0) + count)
    }
  }
  return { ...counts, reasons: Object.fromEntries(reasons) }
}

/** What the first worker says that has something against it. */
function notDirectOf(results: readonly WorkerResult[]): string | null | undefined {
  const words = results.map((result) => result.not_direct)
  const against = words.find((one) => typeof one === 'string')
  if (against !== undefined) return against.slice(0, REASON_MAX)
  return words.length > 0 && words.every((one) => one === null) ? null : undefined
}

function tornOf(results: readonly WorkerResult[]): boolean | undefined {
  if (results.some((result) => result.torn === true)) return true
  return results.length > 0 && results.every((result) => result.torn === false) ? false : undefined
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
