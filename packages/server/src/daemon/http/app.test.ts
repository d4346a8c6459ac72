import { beforeEach, describe, expect, test } from 'bun:test'
import {
  CkptError,
  EngineMapAnswer,
  ErrorBody,
  ROUTES,
  StatusAnswer,
  UpdateReport,
} from '@ckpt/core'
import { type } from 'arktype'
import { hc } from 'hono/client'
import { createApp, type DaemonApp } from './app.ts'
import { BODY_BYTES_MAX } from './body.ts'
import type { Listener } from '../context.ts'
import {
  ENGINE_WITH_MAP,
  eventsOf,
  type FakeDaemon,
  fakeDaemon,
  report,
  state,
  UNIX,
} from './testing/fake-daemon.ts'

let daemon: FakeDaemon
let app: DaemonApp

beforeEach(() => {
  daemon = fakeDaemon()
  app = createApp(daemon)
})

interface Answered {
  readonly status: number
  readonly body: any
  readonly headers: Headers
}

async function call(
  method: string,
  path: string,
  body?: unknown,
  listener: Listener = UNIX,
): Promise<Answered> {
  const raw = typeof body === 'string' || body instanceof Uint8Array || body === undefined
  const init: RequestInit = {
    method,
    body: raw ? (body as string | Uint8Array<ArrayBuffer> | undefined) : JSON.stringify(body),
  }
  const response = await app.request(path, init, { listener, server: null })
  const text = await response.text()
  return {
    status: response.status,
    body: text === '' ? null : JSON.parse(text),
    headers: response.headers,
  }
}

describe('checkpoints', () => {
  test('files are registered with what the body says', async () => {
    const request = { files: ['/a', '/b'], replace: true, version: '7' }
    const answer = await call('POST', '/v1/checkpoints/llama/files', request)
    expect(answer.status).toBe(200)
    expect(answer.body).toEqual({
      name: 'llama',
      version: null,
      tensors: 2,
      bytes: 40,
      seconds: 0.5,
    })
    expect(daemon.calls).toEqual([['register', 'llama', request, null]])
  })

  test('an empty list of files is fine', async () => {
    expect((await call('POST', '/v1/checkpoints/llama/files', { files: [] })).status).toBe(200)
  })

  test('over TCP no file may be registered until directories are named', async () => {
    const tcp: Listener = { transport: 'tcp', token: null, rank: null }
    const refused = await call('POST', '/v1/checkpoints/llama/files', { files: ['/a'] }, tcp)
    expect(refused).toMatchObject({ status: 403, body: { error: { code: 'path_not_allowed' } } })
    expect(daemon.calls).toEqual([])
    expect((await call('POST', '/v1/checkpoints/llama/files', { files: [] }, tcp)).status).toBe(200)
    daemon.allowedDirs = ['/a']
    expect((await call('POST', '/v1/checkpoints/llama/files', { files: ['/a'] }, tcp)).status).toBe(
      200,
    )
  })

  test('over TCP nothing is copied from other daemons: no file is read, no address called', async () => {
    const tcp: Listener = { transport: 'tcp', token: null, rank: null }
    const request = { leader: '127.0.0.1:1', cluster_token_file: '/none' }
    const refused = await call('POST', '/v1/checkpoints/llama/pull', request, tcp)
    expect(refused).toMatchObject({ status: 403, body: { error: { code: 'path_not_allowed' } } })
    const unix = await call('POST', '/v1/checkpoints/llama/pull', request)
    expect(unix).toMatchObject({ status: 400, body: { error: { code: 'bad_request' } } })
    expect(unix.body.error.message).toContain('/none')
    expect(daemon.calls).toEqual([])
  })

  test('a name may be percent-encoded, and a wrong one is refused', async () => {
    await call('POST', '/v1/checkpoints/my%20model%25/files', { files: [] })
    expect(daemon.calls[0]?.[1]).toBe('my model%')
    const slash = await call('POST', '/v1/checkpoints/a%2Fb/files', { files: [] })
    expect(slash).toMatchObject({ status: 400, body: { error: { code: 'bad_request' } } })
    const long = await call('GET', `/v1/checkpoints/${'x'.repeat(256)}`)
    expect(long.status).toBe(400)
  })

  test('list and detail', async () => {
    expect((await call('GET', '/v1/checkpoints')).body.checkpoints).toHaveLength(1)
    expect((await call('GET', '/v1/checkpoints/llama')).body.tensor_list).toEqual([
      { name: 'w', dtype: 'BF16', shape: [2, 2], bytes: 8 },
    ])
    expect(await call('GET', '/v1/checkpoints/other')).toMatchObject({
      status: 404,
      body: { error: { code: 'checkpoint_not_found', message: 'no checkpoint other' } },
    })
  })

  test('dropping what is not there is a 200, and force is a flag', async () => {
    const gone = await call('DELETE', '/v1/checkpoints/none')
    expect(gone).toMatchObject({ status: 200, body: { name: 'none', existed: false } })
    const dropped = await call('DELETE', '/v1/checkpoints/llama?force=true')
    expect(dropped.body).toEqual({ name: 'llama', existed: true })
    expect(daemon.calls.map((it) => it[2])).toEqual([{ force: false }, { force: true }])
    expect((await call('DELETE', '/v1/checkpoints/llama?force=maybe')).status).toBe(400)
  })

  test('gather-metas has no body', async () => {
    const answer = await call('POST', '/v1/checkpoints/llama/gather-metas')
    expect(answer).toMatchObject({ status: 200, body: { digest: 'd', ranks: 1 } })
  })

  test('buffers, then tensors', async () => {
    const buffers = await call('POST', '/v1/checkpoints/llama/buffers', { bytes: [8] })
    expect(buffers).toMatchObject({ status: 200, body: { buffers: [{ id: 'b0', bytes: 8 }] } })
    const tensors = [{ name: 'w', dtype: 'BF16', shape: [2], offset: 0 }]
    const request = { buffers: [{ id: 'b0', tensors }], replace: true }
    expect((await call('POST', '/v1/checkpoints/llama/tensors', request)).status).toBe(200)
    expect(daemon.calls.at(-1)).toEqual(['tensors', 'llama', request])
  })
})

describe('update', () => {
  const path = '/v1/checkpoints/llama/update'
  /** What checkpoint-engine 0.4.2's client sends. */
  const peer = { ranks: [], update_url: null, inference_group_ranks: [], timeout: 300.0, uds: null }

  test('answers with the report when it is done', async () => {
    const answer = call('POST', path, peer)
    await Bun.sleep(20)
    expect(Bun.peek.status(answer)).toBe('pending')
    expect(daemon.started[0]).toMatchObject({ name: 'llama', request: peer })
    daemon.started[0]!.finish()
    const { status, body, headers } = await answer
    expect(status).toBe(200)
    expect(body).toEqual(report('u0', 'llama'))
    expect(UpdateReport(body) instanceof type.errors).toBe(false)
    expect(headers.get('ckpt-update-id')).toBe('u0')
  })

  test('wait: false is a 202 with the state', async () => {
    const answer = await call('POST', path, { wait: false, update_id: 'mine' })
    expect(answer).toMatchObject({ status: 202, body: { update_id: 'mine', state: 'running' } })
    daemon.started[0]!.fail(new CkptError('aborted', 'late'))
  })

  test('its failure has the status of its code and every field', async () => {
    const answer = call('POST', path, peer)
    await Bun.sleep(1)
    const details = { rank: 1, phase: 'transfer', tensor: 'w' } as const
    daemon.started[0]!.fail(new CkptError('engine_timeout', 'no reply', details))
    expect(await answer).toMatchObject({
      status: 504,
      body: { error: { code: 'engine_timeout', message: 'no reply', ...details } },
    })
  })

  test('what start throws is the answer', async () => {
    daemon.refusal = new CkptError('update_running', 'busy', { update_id: 'u9' })
    expect(await call('POST', path, peer)).toMatchObject({
      status: 409,
      body: { error: { code: 'update_running', update_id: 'u9' } },
    })
  })

  test('a field that nobody knows is named', async () => {
    const answer = await call('POST', path, { rank: [1] })
    expect(answer.status).toBe(400)
    expect(answer.body.error).toEqual({ code: 'bad_request', message: "unknown field 'rank'" })
    expect(daemon.started).toHaveLength(0)
  })
})

describe('updates', () => {
  beforeEach(() => daemon.start('llama', { update_id: 'one' }))

  test('state, abort', async () => {
    expect((await call('GET', '/v1/updates/one')).body).toMatchObject({ update_id: 'one' })
    const aborted = await call('POST', '/v1/updates/one/abort')
    expect(aborted).toMatchObject({ status: 200, body: { state: 'failed' } })
    expect((await call('POST', '/v1/updates/one/abort', { reason: 'mine' })).status).toBe(200)
  })

  test.each([
    ['GET', '/v1/updates/two'],
    ['GET', '/v1/updates/two/events'],
    ['POST', '/v1/updates/two/abort'],
  ])('%s %s of an unknown one is a 404', async (method, path) => {
    expect(await call(method, path)).toMatchObject({
      status: 404,
      body: { error: { code: 'update_not_found' } },
    })
  })

  test('events end with the update', async () => {
    daemon.events = () =>
      eventsOf([
        { event: 'progress', ...state('one') },
        { event: 'done', ...state('one', { state: 'done' }) },
      ])
    const response = await app.request(
      '/v1/updates/one/events',
      {},
      { listener: UNIX, server: null },
    )
    expect(response.headers.get('content-type')).toBe('text/event-stream')
    const events = (await response.text()).split('\n\n').filter((it) => it.startsWith('event:'))
    expect(events.map((it) => it.split('\n')[0])).toEqual(['event: progress', 'event: done'])
    const [, data] = events[1]!.split('\n')
    expect(JSON.parse(data!.slice('data: '.length))).toEqual({
      event: 'done',
      ...state('one', { state: 'done' }),
    })
  })
})

describe('the daemon itself', () => {
  test('healthz and status', async () => {
    expect(await call('GET', '/v1/healthz')).toMatchObject({ status: 200, body: { status: 'ok' } })
    const { body } = await call('GET', '/v1/status')
    expect(StatusAnswer(body) instanceof type.errors).toBe(false)
    expect(body).toMatchObject({
      version: '1.2.3',
      pid: process.pid,
      memory: { pinned_bytes: 40, budget_bytes: 100, quarantined_bytes: 7 },
    })
  })

  test('the document describes exactly the routes that are served', async () => {
    const { body } = await call('GET', '/v1/openapi.json')
    expect(body).toMatchObject({ openapi: '3.1.0', info: { version: '1.2.3' } })
    const described = Object.entries<object>(body.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    )
    const served = app.routes
      .filter(({ method }) => method !== 'ALL')
      .map(({ method, path }) => `${method} ${path.replace(/:(\w+)/g, '{$1}')}`)
    expect(described.sort()).toEqual([...new Set(served)].sort())
    expect(described).toHaveLength(ROUTES.length)
  })

  test('the map of an engine, and of one of its tensors', async () => {
    const { url, ranks } = ENGINE_WITH_MAP
    const query = new URLSearchParams({ url })
    const all = await call('GET', `/v1/engine-map?${query}`)
    expect(all).toMatchObject({ status: 200, body: { url, ranks } })
    query.set('tensor', 'model.wte')
    const { body } = await call('GET', `/v1/engine-map?${query}`)
    expect(EngineMapAnswer(body) instanceof type.errors).toBe(false)
    expect(body).toMatchObject({ tensor: { name: 'model.wte' }, ranks: [{ placed: [] }] })
    expect(await call('GET', '/v1/engine-map?url=http%3A%2F%2Fother')).toMatchObject({
      status: 404,
      body: { error: { code: 'not_found', message: 'no engine at http://other' } },
    })
  })

  test.each([
    ['', 'url must be a string (was missing)'],
    ['?url=', 'url must be non-empty'],
    ['?url=a&tensor=', 'tensor must be non-empty'],
    ['?url=a&rank=0', "unknown field 'rank'"],
  ])('a map is not asked for with %p', async (query, message) => {
    const answer = await call('GET', `/v1/engine-map${query}`)
    expect(answer).toMatchObject({
      status: 400,
      body: { error: { code: 'bad_request', message } },
    })
  })

  test('metas go out and in', async () => {
    const metas = (await call('GET', '/v1/metas')).body
    expect(await call('POST', '/v1/metas', metas)).toMatchObject({
      status: 200,
      body: { owners: 1 },
    })
    expect(daemon.calls).toEqual([['loadMetas', metas]])
  })

  test('pickled metas are refused by name', async () => {
    const answer = await call('POST', '/v1/metas', new Uint8Array([0x80, 4, 0x95, 0, 0]))
    expect(answer).toMatchObject({ status: 400, body: { error: { code: 'format_not_supported' } } })
    expect(answer.body.error.message).toContain('the body is a pickle')
    expect(answer.body.error.message).toContain('send JSON (for metas: what GET /v1/metas answers)')
  })

  test('nothing is begun while it shuts down', async () => {
    daemon.closing = true
    expect(await call('POST', '/v1/checkpoints/llama/files', { files: [] })).toMatchObject({
      status: 503,
      body: { error: { code: 'shutting_down' } },
    })
  })

  test('the typed client follows', async () => {
    const client = hc<DaemonApp>('http://daemon', {
      fetch: ((input: Request | string | URL, init?: RequestInit) =>
        app.request(String(input), init, { listener: UNIX, server: null })) as typeof fetch,
    })
    const list = await (await client.v1.checkpoints.$get()).json()
    const names: string[] = list.checkpoints.map(({ name }) => name)
    expect(names).toEqual(['llama'])
    const files = client.v1.checkpoints[':name'].files
    await files.$post({ param: { name: 'llama' }, json: { files: ['/a'] } })
    expect(daemon.calls).toEqual([['register', 'llama', { files: ['/a'] }, null]])
  })
})

describe('errors have one shape', () => {
  test('unknown routes', async () => {
    for (const path of ['/', '/v1', '/v1/checkpoints/a/b/c', '/v2/healthz']) {
      const answer = await call('GET', path)
      expect(answer).toMatchObject({ status: 404, body: { error: { code: 'not_found' } } })
      expect(ErrorBody(answer.body) instanceof type.errors).toBe(false)
    }
  })

  test('a method that the route does not take', async () => {
    const answer = await call('PUT', '/v1/checkpoints/llama')
    expect(answer).toMatchObject({ status: 405, body: { error: { code: 'not_found' } } })
    expect(answer.headers.get('allow')).toBe('DELETE, GET')
    expect((await call('GET', '/v1/checkpoints/llama/update')).headers.get('allow')).toBe('POST')
  })

  test.each([
    ['{"files": [', 'the body is not JSON'],
    ['[]', 'the body must be an object'],
    ['null', 'the body must be an object'],
    [new Uint8Array([0x22, 0xff, 0x22]), 'the body is not JSON'],
    ['{"files": "/a"}', 'files must be an array'],
    ['', 'files must be an array (was missing)'],
  ])('a wrong body %p', async (body, message) => {
    const answer = await call('POST', '/v1/checkpoints/llama/files', body)
    expect(answer).toMatchObject({ status: 400, body: { error: { code: 'bad_request' } } })
    expect(answer.body.error.message).toContain(message)
    expect(daemon.calls).toEqual([])
  })

  test('an array is no update request', async () => {
    expect((await call('POST', '/v1/checkpoints/llama/update', '[]')).status).toBe(400)
    expect(daemon.started).toHaveLength(0)
  })

  test('a body that is too large, told or not', async () => {
    const answer = await call('POST', '/v1/checkpoints/llama/files', ' '.repeat(BODY_BYTES_MAX + 1))
    expect(answer).toMatchObject({ status: 413, body: { error: { code: 'bad_request' } } })
    const chunk = new Uint8Array(BODY_BYTES_MAX / 4).fill(0x20)
    const stream = new ReadableStream({
      pull: (controller) => controller.enqueue(chunk),
    })
    const init = { method: 'POST', body: stream }
    const env = { listener: UNIX, server: null }
    expect((await app.request('/v1/checkpoints/llama/files', init, env)).status).toBe(413)
  })

  test('an error that nobody foresaw is a 500 in the same shape', async () => {
    daemon.registry.list = () => {
      throw new TypeError('x is not a function')
    }
    expect(await call('GET', '/v1/checkpoints')).toMatchObject({
      status: 500,
      body: { error: { code: 'internal', message: 'x is not a function' } },
    })
  })
})
