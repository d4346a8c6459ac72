import type { StatusAnswer } from '@ckpt/core'
import { Hono } from 'hono'
import { clusterStatus } from '../../cluster/serving.ts'
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
    peers: [],
    ...(cluster === null ? {} : { cluster: clusterStatus(cluster) }),
    memory: { ...registry.memory(), quarantined_bytes, checkpoints: registry.list() },
  }
}
