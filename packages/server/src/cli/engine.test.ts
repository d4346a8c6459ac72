import { afterAll, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, rmSync, unlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { EngineWeights } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'
import { NONE, ScriptedDaemon } from '../engines/reference/testing/scripted-daemon.ts'

const MAIN = join(import.meta.dir, 'main.ts')
const dir = mkdtempSync(join(tmpdir(), 'ckpt-engine-cli-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

/** Names of a process's shared memory. */
const shared = (pid: number) =>
  readdirSync('/dev/shm').filter((name) => name.startsWith(`ckpt-${pid}-`))

function spawn(...args: string[]) {
  const child = Bun.spawn([process.execPath, MAIN, 'engine', '--devices', 'host', ...args], {
    stdout: 'pipe',
    stderr: 'pipe',
  })
  return child
}

/** The first line of its output. */
async function ready(child: ReturnType<typeof spawn>) {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk, { stream: true })
    if (text.includes('\n')) break
  }
  return JSON.parse(text) as { url: string; keys: string[]; pid: number }
}

/** Sends one update to the engine of one rank; the failure of the request when its process dies. */
async function update(daemon: ScriptedDaemon, name: string, at: { unix: string }, key: string) {
  const side = daemon.side(name)
  const http = fetch('http://localhost/collective_rpc', {
    unix: at.unix,
    method: 'POST',
    body: JSON.stringify({
      method: 'update_weights_from_ipc',
      args: [{ [key]: side.address }],
      timeout: 20,
    }),
  }).then(
    (response) => response.status,
    (error) => String(error),
  )
  await side.send(daemon.handle)
  await side.reply()
  return { side, http }
}

test('a Unix socket, an update, SIGTERM: nothing is left', async () => {
  const library = openLibrary({ kind: 'host' })
  const daemon = new ScriptedDaemon(library)
  await daemon.fill(9)
  const unix = join(dir, 'engine.sock')
  const child = spawn('--listen', `unix:${unix}`, '--json')
  const { url, keys, pid } = await ready(child)
  expect([url, pid]).toEqual([`unix:${unix}`, child.pid])
  const { side, http } = await update(daemon, 'whole', { unix }, keys[0] ?? '')
  for (const list of [...daemon.lists, NONE, NONE]) {
    await side.send(list)
    expect(await side.reply()).toHaveLength(0)
  }
  expect(await http).toBe(200)
  const response = await fetch('http://localhost/v1/weights', { unix })
  const weights = EngineWeights.assert(await response.json())
  const expected = daemon.expected(0, 1)
  expect(weights.ranks[0]?.tensors.embed?.sha256).toBe(expected.embed?.sha256)
  expect(shared(pid).length).toBeGreaterThan(0)
  child.kill('SIGTERM')
  expect(await child.exited).toBe(0)
  expect(shared(pid)).toEqual([])
  expect(existsSync(unix)).toBe(false)
  daemon.close()
}, 30_000)

test('exit@K: the process ends at list K, and the next one takes the socket over', async () => {
  const library = openLibrary({ kind: 'host' })
  const daemon = new ScriptedDaemon(library)
  const unix = join(dir, 'exits.sock')
  const child = spawn('--listen', `unix:${unix}`, '--json', '--fault', 'exit@1')
  const { keys } = await ready(child)
  const { side, http } = await update(daemon, 'exits', { unix }, keys[0] ?? '')
  await side.send(daemon.lists[0] ?? NONE)
  expect(await side.reply()).toHaveLength(0)
  await side.send(daemon.lists[1] ?? NONE)
  expect(await child.exited).toBe(70)
  expect(await side.saw('disconnected', 5000)).toBe(true)
  expect(await http).toContain('socket')
  for (const name of shared(child.pid)) unlinkSync(join('/dev/shm', name))
  const next = spawn('--listen', `unix:${unix}`, '--json')
  await ready(next)
  expect((await fetch('http://localhost/health', { unix })).status).toBe(200)
  const second = spawn('--listen', `unix:${unix}`, '--json')
  expect(await second.exited).toBe(2)
  next.kill('SIGTERM')
  expect(await next.exited).toBe(0)
  daemon.close()
}, 30_000)

test('an unknown fault is wrong usage, with the list', async () => {
  const child = spawn('--fault', 'explode@3', '--json')
  expect(await child.exited).toBe(2)
  const { error } = JSON.parse(await new Response(child.stdout).text())
  expect(error.code).toBe('bad_request')
  expect(error.message).toContain('refuse-handle@open')
})
