/** Starts real processes of the program and of its peers, and ends what it started. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const ROOT = join(import.meta.dir, '..', '..')
export const CKPT = [process.execPath, join(ROOT, 'packages/server/src/cli/main.ts')]

/** A Python with torch and checkpoint-engine: CKPT_PYTHON or the virtual environment that `.ci/run` makes; null when neither is there. */
export function python(): string | null {
  const told = process.env.CKPT_PYTHON ?? join(ROOT, '.venv/bin/python')
  return existsSync(told) ? told : null
}

export interface Started {
  readonly pid: number
  /** What the line that `ready` matched captured. */
  readonly ready: RegExpMatchArray
  stderr(): string
  exited: Promise<number>
  stop(signal?: NodeJS.Signals): Promise<number>
}

const READY_MS = 30_000

/** Starts a process and waits until a line of its output matches `ready`, 30 seconds at most: then its output is in the error. */
export async function start(
  command: readonly string[],
  ready: RegExp,
  env: Record<string, string> = {},
): Promise<Started> {
  const child = Bun.spawn([...command], {
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...process.env, ...env },
  })
  let text = ''
  const collect = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder()
    for await (const chunk of stream) text += decoder.decode(chunk, { stream: true })
  }
  void collect(child.stdout)
  void collect(child.stderr)
  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => {
    child.kill(signal)
    return await child.exited
  }
  const deadline = performance.now() + READY_MS
  for (;;) {
    const match = text.match(ready)
    if (match)
      return { pid: child.pid, ready: match, stderr: () => text, exited: child.exited, stop }
    if (child.exitCode !== null || performance.now() > deadline) {
      await stop('SIGKILL')
      throw new Error(`${command.join(' ')} did not become ready:\n${text}`)
    }
    await Bun.sleep(20)
  }
}

export async function run(command: readonly string[], env: Record<string, string> = {}) {
  const child = Bun.spawn([...command], {
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...process.env, ...env },
  })
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ])
  return { status: await child.exited, stdout, stderr }
}

export interface Scratch {
  readonly path: string
  remove(): void
}

export function scratch(): Scratch {
  const path = mkdtempSync(join(tmpdir(), 'ckpt-test-'))
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) }
}

/** `ckpt serve` on the host library, its socket and state in `dir`. */
export async function startHostDaemon(dir: Scratch, ...more: string[]) {
  const socket = join(dir.path, 'ckpt.sock')
  const where = ['--uds', socket, '--state-dir', join(dir.path, 'state')]
  const daemon = await start([...CKPT, 'serve', ...where, '--devices', 'host', ...more], /ready/)
  return { daemon, socket }
}

/** A JSON request to the daemon's Unix socket. */
export async function request(
  socket: string,
  method: string,
  route: string,
  body?: unknown,
): Promise<{ status: number; body: any }> {
  const init: Record<string, unknown> = { unix: socket, method, timeout: false, keepalive: false }
  if (body !== undefined) {
    init.body = JSON.stringify(body)
    init.headers = { 'content-type': 'application/json' }
  }
  const response = await fetch(`http://ckpt${route}`, init as RequestInit)
  const text = await response.text()
  return { status: response.status, body: text === '' ? null : JSON.parse(text) }
}
