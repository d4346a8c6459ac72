import { CkptError, type ErrorBody, openApi } from '@ckpt/core'
import { type Context, Hono } from 'hono'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { authenticate } from './auth.ts'
import type { Daemon, DaemonEnv } from '../context.ts'
import { log } from '../log.ts'
import { forwardToLeader } from './forward.ts'
import { checkpointRoutes } from './routes/checkpoints.ts'
import { engineMapRoutes } from './routes/engine-map.ts'
import { metasRoutes } from './routes/metas.ts'
import { statusRoutes } from './routes/status.ts'
import { updateRoutes } from './routes/updates.ts'

/**
 * All routes of the daemon, chained so that `hc<DaemonApp>` follows them.
 *
 * ```ts
 * const app = createApp(daemon)
 * Bun.serve({ unix: path, fetch: (request, server) => app.fetch(request, { listener, server }) })
 * ```
 */
export function createApp(daemon: Daemon) {
  const app = new Hono<DaemonEnv>()
    .use(authenticate())
    .use(async (_context, next) => {
      if (daemon.closing) throw new CkptError('shutting_down', 'the daemon is shutting down')
      await next()
    })
    .use(forwardToLeader(daemon))
    .route('/v1/checkpoints', checkpointRoutes(daemon))
    .route('/v1/updates', updateRoutes(daemon))
    .route('/v1/engine-map', engineMapRoutes(daemon))
    .route('/v1/metas', metasRoutes(daemon))
    .route('/v1', statusRoutes(daemon))
    .get('/v1/openapi.json', (c) => c.json(openApi(daemon.version)))
  app.onError(answerError)
  app.notFound((context) => answerMissing(context, methodsOf(app.routes, context.req.path)))
  return app
}

export type DaemonApp = ReturnType<typeof createApp>

/** The one place where an error becomes an answer. */
function answerError(error: Error, context: Context<DaemonEnv>): Response {
  const known = CkptError.wrap(error)
  const { method, path } = context.req
  const fields = { method, path, code: known.code, message: known.message }
  if (known.code === 'internal') {
    log.error('{method} {path}: {message}', { ...fields, stack: error.stack })
  } else if (context.get('logged') !== true) {
    log.warn('{method} {path}: {code}: {message}', fields)
  }
  const body: ErrorBody = { error: known.failure }
  return context.json(body, known.status as ContentfulStatusCode)
}

function answerMissing(context: Context<DaemonEnv>, methods: readonly string[]): Response {
  const { method, path } = context.req
  if (methods.length === 0) {
    return context.json(errorBody(`there is no ${path}; see GET /v1/openapi.json`), 404)
  }
  const allowed = methods.join(', ')
  context.header('allow', allowed)
  return context.json(errorBody(`${path} takes ${allowed}, not ${method}`), 405)
}

function errorBody(message: string): ErrorBody {
  return { error: { code: 'not_found', message } }
}

/** The methods that some route takes at this path. */
function methodsOf(routes: readonly { method: string; path: string }[], path: string): string[] {
  const segments = path.split('/')
  const methods = routes
    .filter((route) => route.method !== 'ALL' && matches(route.path.split('/'), segments))
    .map((route) => route.method)
  return [...new Set(methods)].sort()
}

function matches(pattern: readonly string[], segments: readonly string[]): boolean {
  if (pattern.length !== segments.length) return false
  return pattern.every((part, i) =>
    part.startsWith(':') ? segments[i] !== '' : part === segments[i],
  )
}
