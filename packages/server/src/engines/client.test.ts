import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import { EngineClient, signalWithin } from './client.ts'
import { enginesHere } from './host.ts'
import { listenerInode } from './identity.ts'
import { vllm } from './vllm.ts'

const FOREVER = new AbortController().signal

function clientOf(url: string, uds: string | null = null): EngineClient {
  return new EngineClient({ url, uds }, enginesHere('secret'))
}

test('the server of a URL that names a route, and the route', () => {
  const named = clientOf('http://h:1/prefix/collective_rpc')
  expect([named.base, named.updatePath]).toEqual(['http://h:1/prefix', '/prefix/collective_rpc'])
  const bare = clientOf('http://h:1/')
  expect([bare.base, bare.updatePath]).toEqual(['http://h:1', null])
  const own = clientOf('http://h:1/my/route?x=1')
  expect([own.base, own.updatePath]).toEqual(['http://h:1', '/my/route?x=1'])
})

test('a call sends the token, does not follow, and ends with its signal', async () => {
  const server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch({ url, headers }) {
      const { pathname } = new URL(url)
      if (pathname === '/hang') return new Promise<Response>(() => {})
      if (pathname === '/away') return Response.redirect('http://127.0.0.1:1/')
      return Response.json({ token: headers.get('authorization') })
    },
  })
  const client = clientOf(`http://127.0.0.1:${server.port}`)
  expect((await client.get('/x', FOREVER)).json).toEqual({ token: 'Bearer secret' })
  expect((await client.get('/away', FOREVER)).status).toBe(302)
  const late = { code: 'engine_busy', message: 'too late' } as const
  const error = await client.get('/hang', signalWithin(FOREVER, 50, late)).catch((thrown) => thrown)
  expect(error).toBeInstanceOf(CkptError)
  expect((error as CkptError).failure).toEqual(late)
  await server.stop(true)
  const gone = await client.get('/x', FOREVER).catch((thrown) => thrown)
  expect((gone as CkptError).failure).toMatchObject({ code: 'engine_unreachable' })
  expect((gone as CkptError).message).toContain('ECONNREFUSED')
})

test('the listening socket tells one start of an engine from the next, over TCP and Unix sockets', async () => {
  const uds = `/tmp/ckpt-identity-${process.pid}.sock`
  const start = (port: number) =>
    Bun.serve({ port, hostname: '127.0.0.1', fetch: () => new Response() })
  const first = start(0)
  const address = { url: `http://localhost:${first.port}/x`, uds: null }
  const before = await listenerInode(address)
  expect(before).toMatch(/^\d+$/)
  expect(await listenerInode(address)).toBe(before)
  await first.stop(true)
  expect(await listenerInode(address)).toBeNull()
  const second = start(first.port!)
  expect(await listenerInode(address)).not.toBe(before)
  await second.stop(true)
  const unix = Bun.serve({ unix: uds, fetch: () => new Response() })
  expect(await listenerInode({ url: 'http://localhost/x', uds })).toMatch(/^\d+$/)
  unix.stop(true)
})

test('what the answer of a collective RPC means', () => {
  const judge = (json: unknown, status = 200) => {
    const reply = { status, ok: status < 300, text: '', json, words: 'words' }
    const { ok, structured, message } = vllm.judge(reply)
    return [ok, structured, message]
  }
  expect(judge({ results: [null, null] })[0]).toBe(true)
  expect(judge(undefined)[0]).toBe(true)
  expect(judge({ results: [{ ok: true }, { ok: true }] }).slice(0, 2)).toEqual([true, true])
  const failed = { ok: false, error: 'out of memory', phase: 'transfer', torn: true }
  expect(judge({ results: [{ ok: true }, failed] })).toEqual([false, true, 'out of memory'])
  expect(judge({ error: 'x' }, 500)).toEqual([false, false, 'words'])
})

test('what workers say of how they have reloaded', () => {
  const reload = (...results: unknown[]) =>
    vllm.judge({ status: 200, ok: true, text: '', json: { results }, words: '' }).reload
  const one = { ok: true, replayed: 3, ordinary: 2, reasons: { 'it is converted': 1 } }
  const other = { ok: true, replayed: 5, ordinary: 0, reasons: { 'it is converted': 2, moved: 1 } }
  const reasons = { 'it is converted': 3, moved: 1 }
  expect(reload(one, other)).toEqual({ replayed: 8, ordinary: 2, reasons })
  expect(reload(null, null)).toBeNull()
  expect(reload({ ok: true })).toBeNull()
  expect(reload(one, { ok: true, replayed: -1, ordinary: 0 })).toBeNull()
  expect(reload({ ...one, reasons: { x: 'many', y: 1 } })?.reasons).toEqual({ y: 1 })
  const many = Object.fromEntries(Array.from({ length: 99 }, (_, i) => [`reason ${i}`, 1]))
  expect(Object.keys(reload({ ...one, reasons: many })?.reasons ?? {}).length).toBe(32)
})
