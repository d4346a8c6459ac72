import { Metas } from '@ckpt/core'
import { Hono } from 'hono'
import { json, LARGE_BODY_BYTES_MAX } from '../body.ts'
import type { Daemon, DaemonEnv } from '../../context.ts'

/** `/v1/metas`: where the tensors of the last gathered checkpoint lie, in checkpoint-engine 0.4.2's JSON. */
export function metasRoutes({ registry, updates }: Daemon) {
  return new Hono<DaemonEnv>()
    .get('/', (c) => c.json(updates.leader?.versions.metas ?? registry.metas()))
    .post('/', json(Metas, LARGE_BODY_BYTES_MAX), (c) => {
      const metas = c.req.valid('json')
      registry.loadMetas(metas)
      updates.leader?.versions.forgetMetas()
      return c.json({ owners: Object.keys(metas).length })
    })
}
