import {
  CkptError,
  CollectiveRpcRequest,
  FaultsRequest,
  UpdateWeightsArgs,
  UpdateWeightsFromIpcRequest,
} from '@ckpt/core'
import { type } from 'arktype'
import { type Context, Hono } from 'hono'
import type { ReferenceEngine, UpdateOutcome, UpdateRequest } from './engine.ts'
import { extensionResult, wayOf } from './extension.ts'

/** Of a request that names no timeout. */
const TIMEOUT_SECONDS = 300
const TIMEOUT_MAX_SECONDS = 86_400
/** checkpoint-engine's workers get this text when a worker elsewhere fails. */
const FAILED = 'Some workers failed to update weights'
/** What `GET /update_weights_from_ipc` tells about a worker of each dialect. */
const VERSIONS = { D1: '0.2.0', D2: '0.2.1', D3: '0.3.4', D4: '0.4.2' } as const

const ASLEEP = 'the engine must be sleeping: POST /sleep, then POST /wakeup?tags=weights'

/** An error answer in the form of vLLM. */
function vllmError(c: Context, status: 400 | 404 | 500, message: string): Response {
  const kind = status === 500 ? 'InternalServerError' : 'BadRequestError'
  return c.json({ error: { message, type: kind, param: null, code: status } }, status)
}

async function bodyOf(c: Context): Promise<unknown> {
  try {
    return await c.req.json()
  } catch {
    return null
  }
}

/** The routes of vLLM, SGLang and LMDeploy that a daemon uses, and `GET /v1/weights`. */
export function engineRoutes(engine: ReferenceEngine, tellDevices: boolean): Hono {
  const app = new Hono()
  app.onError((error, c) => vllmError(c, 500, error.message))
  app.get('/health', (c) => c.body(null, 200))
  app.get('/ping', (c) => c.body(null, 200))
  app.get('/v1/weights', async (c) => c.json(await engine.weights()))
  app.get('/v1/faults', (c) => c.json({ holding: engine.holding }))
  app.post('/v1/faults', (c) => armFaults(c, engine))
  if (tellDevices) addLmdeployRoutes(app, engine)
  app.post('/collective_rpc', (c) => collectiveRpc(c, engine))
  app.post('/update_weights_from_ipc', (c) => updateFromIpc(c, engine))
  addPauseRoutes(app, engine)
  // As FastAPI: 405 where the path exists with another method, by which clients tell the engines apart.
  app.notFound((c) => {
    const known = app.routes.some((route) => route.path === c.req.path)
    const detail = known ? 'Method Not Allowed' : 'Not Found'
    return c.json({ detail }, known ? 405 : 404)
  })
  return app
}

/** As LMDeploy 0.18: it takes updates only while it sleeps, and POSTs only of JSON, also those without a body. */
function addLmdeployRoutes(app: Hono, engine: ReferenceEngine): void {
  app.use(async (c, next) => {
    const json = c.req.header('content-type')?.startsWith('application/json') ?? false
    if (c.req.method !== 'POST' || json) return await next()
    return vllmError(c, 400, "Unsupported Media Type: Only 'application/json' is allowed")
  })
  app.get('/update_weights_from_ipc', (c) =>
    c.json({
      ready: engine.paused,
      message: engine.paused ? 'ready' : ASLEEP,
      device_uuids: engine.keys,
      checkpoint_engine_version: VERSIONS[engine.dialect],
      is_sleeping: engine.paused,
    }),
  )
  app.get('/is_sleeping', (c) => c.json({ is_sleeping: engine.paused }))
  app.use('/update_weights_from_ipc', async (c, next) => {
    if (engine.paused) return await next()
    return c.json({ success: false, message: ASLEEP }, 400)
  })
  app.post('/sleep', (c) => {
    engine.paused = true
    return c.body(null, 200)
  })
  app.post('/wakeup', (c) => {
    if (c.req.query('tags') !== 'weights') engine.paused = false
    return c.body(null, 200)
  })
}

async function armFaults(c: Context, engine: ReferenceEngine): Promise<Response> {
  const request = FaultsRequest(await bodyOf(c))
  if (request instanceof type.errors) return vllmError(c, 400, request.summary)
  try {
    engine.arm(request.faults)
  } catch (error) {
    return vllmError(c, 400, CkptError.wrap(error).message)
  }
  return c.body(null, 200)
}

async function collectiveRpc(c: Context, engine: ReferenceEngine): Promise<Response> {
  const request = CollectiveRpcRequest(await bodyOf(c))
  if (request instanceof type.errors) return vllmError(c, 400, request.summary)
  const way = wayOf(request.method, engine.direct)
  if (way === null) {
    return vllmError(c, 500, `the workers have no method ${request.method}`)
  }
  const args = UpdateWeightsArgs(request.args)
  if (args instanceof type.errors) return vllmError(c, 400, args.summary)
  const version = request.kwargs?.weight_version
  const outcome = await update(engine, {
    way,
    addresses: args[0],
    timeoutMs: timeoutMsOf(request.timeout ?? TIMEOUT_SECONDS),
    version: typeof version === 'string' ? version : null,
  })
  if (engine.direct && outcome.result !== 'http' && outcome.ranks !== null) {
    return c.json({ results: outcome.ranks.map((rank) => extensionResult(rank, way)) })
  }
  if (outcome.result === 'ok') return c.json({ results: engine.keys.map(() => null) })
  if (outcome.result === 'http') return vllmError(c, outcome.status, 'injected by the fault')
  return vllmError(c, 500, `${FAILED}: ${outcome.reason}`)
}

async function updateFromIpc(c: Context, engine: ReferenceEngine): Promise<Response> {
  const request = UpdateWeightsFromIpcRequest(await bodyOf(c))
  if (request instanceof type.errors) {
    return c.json({ success: false, message: request.summary }, 400)
  }
  const outcome = await update(engine, {
    way: 'ring',
    addresses: request.zmq_handles,
    timeoutMs: timeoutMsOf(TIMEOUT_SECONDS),
    version: request.weight_version ?? null,
  })
  if (outcome.result === 'ok') {
    return c.json({ success: true, message: 'Weights updated successfully' })
  }
  if (outcome.result === 'http') {
    return c.json({ success: false, message: 'injected by the fault' }, outcome.status)
  }
  return c.json({ success: false, message: `${FAILED}: ${outcome.reason}` }, 400)
}

function timeoutMsOf(seconds: number): number {
  return Math.ceil(Math.min(seconds, TIMEOUT_MAX_SECONDS) * 1000)
}

async function update(engine: ReferenceEngine, request: UpdateRequest): Promise<UpdateOutcome> {
  try {
    return await engine.update(request)
  } catch (error) {
    return { result: 'failed', reason: CkptError.wrap(error).message, ranks: null }
  }
}

/** Nothing is generated here, so there is nothing to wait for: only whether the engine is paused is kept. */
function addPauseRoutes(app: Hono, engine: ReferenceEngine): void {
  app.post('/pause', async (c) => {
    const mode = c.req.query('mode') ?? 'abort'
    if (!['abort', 'wait', 'keep'].includes(mode)) return vllmError(c, 400, `no mode ${mode}`)
    if (mode === 'wait' && engine.pauseHangs()) {
      await gone(c)
      return vllmError(c, 500, 'the request was given up')
    }
    engine.paused = true
    return c.json({ status: 'paused' })
  })
  app.post('/resume', (c) => {
    engine.paused = false
    return c.json({ status: 'resumed' })
  })
  app.get('/is_paused', (c) => c.json({ is_paused: engine.paused }))
  app.post('/reset_prefix_cache', async (c) => {
    await engine.mayFlush()
    return c.body(null, 200)
  })
  app.post('/pause_generation', (c) => {
    engine.paused = true
    return c.json({ status: 'ok', message: 'Generation paused successfully.' })
  })
  app.post('/continue_generation', (c) => {
    engine.paused = false
    return c.json({ status: 'ok', message: 'Generation continued successfully.' })
  })
  app.post('/flush_cache', (c) => c.text('Cache flushed.'))
}

/** Until the client has gone away. */
function gone(c: Context): Promise<void> {
  const { signal } = c.req.raw
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
