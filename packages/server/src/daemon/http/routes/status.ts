import type { StatusAnswer } from '@ckpt/core'
import { Hono } from 'hono'
import type { Daemon, DaemonEnv } from '../../context.ts'

/** `/v1/healthz` and `/v1/status`. */
export function statusRoutes(daemon: Daemon) {
  return new Hono<DaemonEnv>()
    .get('/healthz', (c) => c.json({ status: 'ok' as const }))
    .get('/status', (c) => c.json(statusOf(daemon)))
}

function statusOf({ version, registry, updates, cluster }: Daemon): StatusAnswer {
  const { quarantined_bytes, ...rest } = updates.status()
  return {
    version,
    pid: process.pid,
    ...rest,
    ranks: cluster?.ranks ?? rest.ranks,
    peers: [],
    ...(cluster === null ? {} : { cluster: cluster.status }),
    memory: { ...registry.memory(), quarantined_bytes, checkpoints: registry.list() },
  }
}
