import type { Failure } from '@ckpt/core'
import type { EngineAdapter, PauseMode } from './adapter.ts'
import type { EngineClient } from './client.ts'
import { judgeSuccess, lookAt, must, mustPause } from './routes.ts'

const FLUSH_RETRY_MS = 100
/**
 * An engine cannot be flushed while it serves requests, nor while any wait that were retracted, which they do until it is resumed: it
 * is tried this often, then the report says so.
 */
const FLUSH_TRIES = 10
/** Requests that were ended are let go soon. */
const FLUSH_TRIES_ABORTED = 50

/** SGLang with its checkpoint-engine support; see `docs/engines.md`, section 5. */
export const sglang: EngineAdapter = {
  kind: 'sglang',
  updatePath: '/update_weights_from_ipc',

  // GET /health is itself a request that waits for a generated token
  look: (client, signal) => lookAt(client, '/ping', signal),

  updateBody: ({ map, weightVersion }) => ({
    zmq_handles: map,
    // with true a pending request kills the server (`assert flush_cache_success`): flushed afterwards, see settle
    flush_cache: false,
    torch_empty_cache: false,
    ...(weightVersion === null ? {} : { weight_version: weightVersion }),
  }),

  judge: judgeSuccess,

  /**
   * Retracted requests go on afterwards; SGLang has no mode that lets them end first. It has no route that tells whether it is
   * paused either: one that an operator has paused is resumed after an update with `pause`.
   */
  async pause(client, mode: PauseMode, signal, posting): Promise<boolean> {
    await posting.beforePost(false)
    const body = { mode: mode === 'abort' ? 'abort' : 'retract' }
    const path = '/pause_generation'
    mustPause(client, path, await client.post(path, body, signal), posting)
    return true
  },

  async resume(client: EngineClient, signal: AbortSignal): Promise<void> {
    must(await client.post('/continue_generation', {}, signal), 'resume')
  },

  outOfStep: async () => false,

  settle: flushCache,
}

/** @param retryMs between two tries */
export async function flushCache(
  client: EngineClient,
  paused: PauseMode | null,
  signal: AbortSignal,
  retryMs = FLUSH_RETRY_MS,
): Promise<Failure | null> {
  const triesMax = paused === 'abort' ? FLUSH_TRIES_ABORTED : FLUSH_TRIES
  for (let tries = 1; ; tries++) {
    const reply = await client.post('/flush_cache', undefined, signal)
    if (reply.ok) return null
    if (tries >= triesMax) {
      const how = paused === null ? 'pause the engine' : "pause it with 'abort'"
      const message = `the cache still holds results of the old weights: /flush_cache answered ${reply.status}: ${reply.words}; ${how} for updates`
      return { code: 'engine_busy', message, phase: 'post' }
    }
    signal.throwIfAborted()
    await Bun.sleep(retryMs)
  }
}
