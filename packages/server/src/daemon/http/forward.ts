import { CkptError } from '@ckpt/core'
import type { MiddlewareHandler } from 'hono'
import type { Daemon, DaemonEnv } from '../context.ts'
import { BODY_BYTES_MAX, keepOpen, readBody } from './body.ts'

interface Call {
  readonly method: string
  readonly path: RegExp
}

/** Every daemon has its own; the leader tells its to the others, too. */
const STATUS: Call = { method: 'GET', path: /^\/v1\/status$/ }
/** What only the leader of several daemons can do: their clients may ask any of them. */
const FOR_LEADER: readonly Call[] = [
  { method: 'POST', path: /^\/v1\/checkpoints\/[^/]+\/(update|gather-metas)$/ },
  { method: 'GET', path: /^\/v1\/updates\// },
  { method: 'POST', path: /^\/v1\/updates\// },
  { method: 'GET', path: /^\/v1\/engine-map$/ },
  { method: 'GET', path: /^\/v1\/metas$/ },
]

/** What another daemon may ask the leader for its clients. */
export function isForLeader(method: string, path: string): boolean {
  return isAmong([...FOR_LEADER, STATUS], method, path)
}

function isAmong(calls: readonly Call[], method: string, path: string): boolean {
  return calls.some((one) => one.method === method && one.path.test(path))
}

/** At a follower the leader answers these. @throws CkptError `leader_lost` */
export function forwardToLeader(daemon: Daemon): MiddlewareHandler<DaemonEnv> {
  return async (context, next) => {
    const forwarder = daemon.cluster?.forwarder ?? null
    const { method, path } = context.req
    if (forwarder === null || !isAmong(FOR_LEADER, method, path)) return next()
    if (context.env.listener.rank !== null) {
      const message = 'a rank socket of a daemon that follows another one takes files only'
      throw new CkptError('not_supported', message)
    }
    const body = method === 'GET' ? null : await readBody(context, BODY_BYTES_MAX)
    keepOpen(context)
    context.res = await forwarder.forward(method, context.req.raw.url, body)
    context.set('logged', true)
  }
}
