import { EngineMapQuery, parseBody } from '@ckpt/core'
import { Hono } from 'hono'
import type { Daemon, DaemonEnv } from '../../context.ts'

/** `/v1/engine-map`: where an engine has told its weights lie. */
export function engineMapRoutes({ updates }: Daemon) {
  return new Hono<DaemonEnv>().get('/', async (c) =>
    c.json(await updates.engineMap(parseBody(EngineMapQuery, c.req.query()))),
  )
}
