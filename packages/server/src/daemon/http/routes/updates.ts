import { AbortRequest } from '@ckpt/core'
import { Hono } from 'hono'
import { json, keepOpen } from '../body.ts'
import type { Daemon, DaemonEnv } from '../../context.ts'
import { log } from '../../log.ts'
import { eventStream } from '../sse.ts'

/** `/v1/updates`: one update, running or among the last 100. */
export function updateRoutes({ updates, heartbeatMs }: Daemon) {
  return new Hono<DaemonEnv>()
    .get('/:id', (c) => c.json(updates.state(c.req.param('id'))))
    .get('/:id/events', (c) => {
      const id = c.req.param('id')
      updates.state(id) // 404 now: an iterator may throw only when the headers are sent
      keepOpen(c)
      return eventStream(updates.events(id), heartbeatMs)
    })
    .get('/:id/trace', (c) => c.json(updates.trace(c.req.param('id'))))
    .post('/:id/abort', json(AbortRequest), (c) => {
      const id = c.req.param('id')
      const { reason } = c.req.valid('json')
      log.info('abort of update {id} asked for: {reason}', {
        id,
        reason: reason ?? 'no reason given',
      })
      return c.json(updates.abort(id, reason))
    })
}
