import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../../../../../test/support/until.ts'
import { createApp } from './app.ts'
import { listenUnix, type OpenListener } from './listeners.ts'
import { type FakeDaemon, fakeDaemon } from './testing/fake-daemon.ts'

/** Less than Bun gives a test. */
const WAIT_MS = 4000

let dir: string
let daemon: FakeDaemon
let listener: OpenListener
const sockets: Socket[] = []

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-holds-'))
  daemon = fakeDaemon()
  const options = { rank: null, privateDir: false }
  listener = await listenUnix(createApp(daemon), join(dir, 'ckpt.sock'), options)
})

afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy()
  daemon.bufferHolds.close()
  await listener.close()
  rmSync(dir, { recursive: true, force: true })
})

/** A request on a socket of its own; resolves when `words` have come, null: once it was sent. */
async function ask(body: object, words: string | null): Promise<{ socket: Socket; text: string }> {
  const socket = createConnection(join(dir, 'ckpt.sock'))
  sockets.push(socket)
  socket.on('error', () => {})
  const json = JSON.stringify(body)
  const lines = [
    'POST /v1/checkpoints/m/buffers HTTP/1.1',
    'host: x',
    `content-length: ${json.length}`,
  ]
  const request = `${lines.join('\r\n')}\r\n\r\n${json}`
  const { promise, resolve } = Promise.withResolvers<{ socket: Socket; text: string }>()
  let text = ''
  socket.on('data', (chunk) => {
    text += chunk.toString()
    if (words !== null && text.includes(words)) resolve({ socket, text })
  })
  socket.write(request, () => {
    if (words === null) resolve({ socket, text })
  })
  return promise
}

const abandoned = () => daemon.calls.filter(([method]) => method === 'abandon')

test('a held answer stays open, and its end abandons the buffers', async () => {
  const { socket, text } = await ask({ bytes: [8], hold: true }, '"b0"')
  expect(text).toContain('{"buffers":[{"id":"b0","path":"/dev/shm/x","bytes":8}]}\n')
  await Bun.sleep(100)
  expect([socket.readyState, abandoned()]).toEqual(['open', []])
  socket.destroy()
  await until('the buffers to be abandoned', WAIT_MS, () => abandoned().length > 0)
  await Bun.sleep(20)
  expect(abandoned()).toEqual([['abandon', ['b0']]])
})

test('without hold the answer ends, and the buffers stay', async () => {
  const { socket } = await ask({ bytes: [8] }, '"b0"')
  socket.destroy()
  await Bun.sleep(100)
  expect(abandoned()).toEqual([])
})

test.each([true, false])('a client that has gone before the answer (hold: %p)', async (hold) => {
  const { promise, resolve } = Promise.withResolvers<void>()
  const { buffers } = daemon.registry
  daemon.registry.buffers = async (...args) => {
    const answer = await buffers(...args)
    await promise
    return answer
  }
  const { socket } = await ask({ bytes: [8], hold }, null)
  await until('the request', WAIT_MS, () => daemon.calls.length > 0)
  socket.destroy()
  await Bun.sleep(50)
  resolve()
  await until('the buffers to be abandoned', WAIT_MS, () => abandoned().length > 0)
})

test('a daemon that closes ends what is held', async () => {
  const { socket } = await ask({ bytes: [8], hold: true }, '"b0"')
  const closed = Promise.withResolvers<void>()
  socket.on('close', () => closed.resolve())
  daemon.bufferHolds.close()
  const beganMs = performance.now()
  await listener.close()
  expect(performance.now() - beganMs).toBeLessThan(1500)
  await closed.promise
  expect(abandoned()).toHaveLength(1)
})
