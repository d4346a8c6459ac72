import type { StatusAnswer } from '@ckpt/core'
import { Hono } from 'hono'
import type { Daemon, DaemonEnv } from '../../context.ts'

/** `/v1/healthz` and `/v1/status`. */
export function statusRoutes(daemon: Daemon) {
  return new Hono<DaemonEnv>()
    .get('/healthz', (c) => c.json({ status: 'ok' as const }))
    .get('/status', async (c) => c.json(await statusOf(daemon)))
}

/** Of several daemons each tells of its own devices and memory, and of updates what the leader does. */
async function statusOf({ version, registry, updates, cluster }: Daemon): Promise<StatusAnswer> {
  const led = (await cluster?.leaderStatus()) ?? null
  const { quarantined_bytes, ...own } = updates.status()
  const { ranks, engines, broadcast, running_update, queued } = led ?? own
  return {
    version,
    pid: process.pid,
    ...own,
    ranks,
    engines,
    broadcast,
    running_update,
    queued,
    peers: [],
    ...(cluster === null ? {} : { cluster: cluster.status(led) }),
    memory: { ...registry.memory(), quarantined_bytes, checkpoints: registry.list() },
  }
}
