import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { until } from '../../../../../test/support/until.ts'
import { createApp, type DaemonApp } from './app.ts'
import { readToken } from './auth.ts'
import { listenTcp, listenUnix, type OpenListener } from './listeners.ts'
import { type FakeDaemon, fakeDaemon } from './testing/fake-daemon.ts'

const TOKEN = 'correct-horse-battery'
/** Bun cuts a silent request after 10 s, and looks every 4 s. */
const SILENT_MS = 21_000
const WAIT_MS = 4000

let dir: string
let daemon: FakeDaemon
let app: DaemonApp
const opened: OpenListener[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-listen-'))
  daemon = fakeDaemon()
  app = createApp(daemon)
})

afterEach(async () => {
  for (const listener of opened.splice(0)) await listener.close()
  rmSync(dir, { recursive: true, force: true })
})

async function unix(name = 'ckpt.sock'): Promise<string> {
  const path = join(dir, name)
  opened.push(await listenUnix(app, path, { rank: null, privateDir: false }))
  return path
}

function tcp(): OpenListener {
  writeFileSync(join(dir, 'token'), `${TOKEN}\n`)
  const token = readToken(join(dir, 'token'))
  const listener = listenTcp(app, { host: '127.0.0.1', port: 0 }, token)
  opened.push(listener)
  return listener
}

const authorization = { authorization: `Bearer ${TOKEN}` }

describe('Unix socket', () => {
  test('only its user can open it, in a directory that only its user can enter', async () => {
    const path = await unix('new/ckpt.sock')
    expect((statSync(path).mode & 0o777).toString(8)).toBe('600')
    expect((statSync(join(dir, 'new')).mode & 0o777).toString(8)).toBe('700')
    const answer = await fetch('http://ckpt/v1/healthz', { unix: path })
    expect(answer.status).toBe(200)
    await opened[0]!.close()
    expect(existsSync(path)).toBe(false)
  })

  test('a socket that a dead daemon left is replaced', async () => {
    const path = join(dir, 'ckpt.sock')
    const script = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`
    await Bun.spawn([process.execPath, '-e', script]).exited
    expect(existsSync(path)).toBe(true)
    await unix()
    expect((await fetch('http://ckpt/v1/healthz', { unix: path })).status).toBe(200)
  })

  test('that of a live daemon is refused and stays', async () => {
    const path = join(dir, 'ckpt.sock')
    const other = createServer().listen(path)
    await until('its socket', WAIT_MS, () => existsSync(path))
    const refused = await unix().catch((error) => error)
    expect(refused).toBeInstanceOf(CkptError)
    expect(refused.message).toBe(`another daemon listens at ${path}`)
    expect(existsSync(path)).toBe(true)
    other.close()
  })

  test('what is not a socket is refused and stays', async () => {
    const path = join(dir, 'ckpt.sock')
    writeFileSync(path, 'precious')
    expect((await unix().catch((error) => error)).message).toBe(
      `${path} is there already and is not a socket`,
    )
    expect(await Bun.file(path).text()).toBe('precious')
  })

  test('a directory that others can enter is refused where it must be private', async () => {
    const refused = listenUnix(app, join('/tmp', 'ckpt.sock'), { rank: null, privateDir: true })
    expect((await refused.catch((error) => error)).message).toContain('mode 0700')
  })
})

describe('TCP', () => {
  test('without the token only healthz answers', async () => {
    const { address } = tcp()
    const statusOf = async (path: string, headers: Record<string, string> = {}) =>
      (await fetch(`${address}${path}`, { headers })).status
    expect(await statusOf('/v1/healthz')).toBe(200)
    expect(await statusOf('/v1/status')).toBe(401)
    expect(await statusOf('/v1/openapi.json')).toBe(401)
    expect(await statusOf('/nowhere')).toBe(401)
    for (const wrong of ['', 'Bearer', `Bearer ${TOKEN}x`, `Basic ${TOKEN}`, TOKEN]) {
      expect(await statusOf('/v1/status', { authorization: wrong })).toBe(401)
    }
    expect(await statusOf('/v1/status', authorization)).toBe(200)
    expect(await statusOf('/v1/status', { authorization: `bearer  ${TOKEN}` })).toBe(200)
  })

  test('the 401 has our shape and says what to send', async () => {
    const { address } = tcp()
    const answer = await fetch(`${address}/v1/checkpoints/a/update`, { method: 'POST', body: '{}' })
    expect(answer.headers.get('www-authenticate')).toBe('Bearer')
    expect(await answer.json()).toMatchObject({ error: { code: 'unauthorized' } })
    expect(daemon.started).toHaveLength(0)
  })

  test('a port in use is named', () => {
    const { address } = tcp()
    const port = Number(address.split(':').at(-1))
    const again = () => listenTcp(app, { host: '127.0.0.1', port }, Buffer.alloc(32))
    expect(again).toThrow(`cannot listen at 127.0.0.1:${port}`)
  })
})

test('a body that is too large is refused in our shape, before it is sent', async () => {
  const path = await unix()
  const socket = connect(path)
  socket.write(
    'POST /v1/checkpoints/a/files HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n',
  )
  const [head] = await once(socket, 'data')
  socket.destroy()
  expect(String(head)).toStartWith('HTTP/1.1 413')
  expect(String(head)).toContain('"code":"bad_request"')
})

test('a client that disconnects does not end the update', async () => {
  const path = await unix()
  const client = new AbortController()
  const url = 'http://ckpt/v1/checkpoints/llama/update'
  const lost = fetch(url, { unix: path, method: 'POST', body: '{}', signal: client.signal })
  lost.catch(() => {})
  await until('the update', WAIT_MS, () => daemon.started.length === 1)
  client.abort()
  await Bun.sleep(100)
  const { id } = daemon.started[0]!
  expect(await (await fetch(`http://ckpt/v1/updates/${id}`, { unix: path })).json()).toMatchObject({
    state: 'running',
  })
  daemon.started[0]!.finish()
})

test('close lets the answers leave', async () => {
  const path = await unix()
  const answer = fetch('http://ckpt/v1/checkpoints/llama/update', { unix: path, method: 'POST' })
  await until('the update', WAIT_MS, () => daemon.started.length === 1)
  opened[0]!.refuse()
  daemon.started[0]!.fail(new CkptError('aborted', 'SIGTERM'))
  await opened[0]!.close()
  expect(await (await answer).json()).toMatchObject({ error: { code: 'aborted' } })
})

test(
  'requests may be silent for longer than Bun allows, over both transports',
  async () => {
    const path = await unix()
    const { address } = tcp()
    daemon.heartbeatMs = 60_000
    daemon.start('llama', { update_id: 'silent' })
    daemon.events = async function* () {
      await Bun.sleep(SILENT_MS)
      yield* []
    }
    daemon.registry.drop = async (name) => {
      await Bun.sleep(SILENT_MS)
      return { name, existed: true }
    }
    const over = [
      { base: 'http://ckpt', how: { unix: path } },
      { base: address, how: { headers: authorization } },
    ]
    const requests = over.flatMap(({ base, how }) => {
      const update = { method: 'POST', body: '{"timeout":300}', timeout: false, ...how }
      return [
        fetch(`${base}/v1/checkpoints/llama/update`, update),
        // Bun 1.4.5 cuts no request that came with a body, but all others
        fetch(`${base}/v1/checkpoints/llama/update`, { ...update, body: undefined }),
        fetch(`${base}/v1/updates/silent/events`, how),
        fetch(`${base}/v1/checkpoints/llama`, { method: 'DELETE', ...how }),
      ]
    })
    const settled = Promise.allSettled(requests.map(async (it) => (await it).text()))
    await Bun.sleep(SILENT_MS)
    for (const update of daemon.started) update.finish()
    const answers = await settled
    expect(answers.map(({ status }) => status)).toEqual(Array(8).fill('fulfilled'))
  },
  SILENT_MS + 10_000,
)
