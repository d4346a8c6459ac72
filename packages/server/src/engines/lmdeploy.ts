import type { EngineAdapter, Readiness } from './adapter.ts'
import type { EngineClient } from './client.ts'
import { judgeSuccess, must, mustPause } from './routes.ts'
import { dialectOfVersion } from './worker-version.ts'

/** What LMDeploy 0.18 says of updates, and its versions before it leave out. */
interface LmdeployStatus {
  readonly ready?: unknown
  readonly message?: unknown
  readonly device_uuids?: unknown
  /** Null: checkpoint-engine is not installed where it runs. */
  readonly checkpoint_engine_version?: unknown
}

/**
 * Whether it can take updates once it is put to sleep: until then it says that it is not ready.
 *
 * @param status its answer to `GET /update_weights_from_ipc`
 * @returns null: it can; else why not
 */
export function lmdeployObstacle(status: unknown): string | null {
  const told = Object(status) as LmdeployStatus
  const { ready, message, device_uuids: uuids, checkpoint_engine_version: version } = told
  if (ready === true || typeof version === 'string') return null
  if (ready === undefined && Array.isArray(uuids)) return null
  return typeof message === 'string' ? message : 'it says that it is not ready'
}

/** LMDeploy: it tells its devices and its worker's version before anything is sent. */
export const lmdeploy: EngineAdapter = {
  kind: 'lmdeploy',
  updatePath: '/update_weights_from_ipc',

  async look(client: EngineClient, signal: AbortSignal): Promise<Readiness> {
    const reply = await client.get('/update_weights_from_ipc', signal)
    const { device_uuids: told, checkpoint_engine_version: version } = Object(
      reply.json,
    ) as LmdeployStatus
    const uuids = Array.isArray(told) ? told.map(String) : null
    const obstacle = reply.ok ? lmdeployObstacle(reply.json) : reply.words
    const ready = obstacle === null
    const words = ready ? '' : `GET /update_weights_from_ipc answered ${reply.status}: ${obstacle}`
    return { ready, words, deviceUuids: uuids, dialect: dialectOfVersion(version) }
  },

  updateBody: ({ map }) => ({ zmq_handles: map }),

  judge: judgeSuccess,

  /**
   * Level 2 gives weights and cache up: whoever wakes it before an update was whole has it serve memory that nobody has written. The
   * weights' memory comes back at once, to be written, also when someone else has put it to sleep. Versions without the route /is_sleeping do not say so: what was asleep there is woken up after the update.
   */
  async pause(client, _mode, signal, posting): Promise<boolean> {
    const asked = await client.get('/is_sleeping', signal)
    const asleep = (asked.json as { is_sleeping?: unknown } | null | undefined)?.is_sleeping
    const ours = !asked.ok || asleep !== true
    if (ours) {
      await posting.beforePost(true)
      mustPause(client, '/sleep', await client.post('/sleep?level=2', undefined, signal), posting)
    }
    must(await client.post('/wakeup?tags=weights', undefined, signal), 'pause')
    return ours
  },

  async resume(client: EngineClient, signal: AbortSignal): Promise<void> {
    must(await client.post('/wakeup?tags=kv_cache', undefined, signal), 'resume')
  },

  outOfStep: async () => false,

  settle: async () => null,
}
