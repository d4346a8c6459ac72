import type { Server } from 'bun'
import { chmodSync, rmSync } from 'node:fs'
import { CkptError } from '@ckpt/core'
import type { DaemonApp } from './app.ts'
import type { Listener } from '../context.ts'
import type { TcpAddress } from '../options.ts'
import { freeSocketPath } from './sockets.ts'

/** How long answers may take to leave after everything has ended. */
const DRAIN_MS = 2000
const DRAIN_POLL_MS = 10

export interface OpenListener {
  /** `unix:PATH` or `http://HOST:PORT`. */
  readonly address: string
  /** Takes no more connections. */
  refuse(): void
  /** Lets answers leave, then closes every connection and removes the socket. */
  close(): Promise<void>
}

/** Listens at a Unix socket that only this user can open. */
export async function listenUnix(
  app: DaemonApp,
  path: string,
  options: { readonly rank: number | null; readonly privateDir: boolean },
): Promise<OpenListener> {
  await freeSocketPath(path, options.privateDir)
  const listener: Listener = { transport: 'unix', token: null, rank: options.rank }
  // the mode must be right from the first moment, and chmod comes after bind
  const umask = process.umask(0o177)
  let server: Server<undefined>
  try {
    server = Bun.serve(unixOptions(app, listener, path))
  } catch (error) {
    throw new CkptError('cannot_listen', `cannot listen at ${path}: ${(error as Error).message}`)
  } finally {
    process.umask(umask)
  }
  chmodSync(path, 0o600)
  return open(server, `unix:${path}`, path)
}

/** Listens at a TCP port; clients must send the token. */
export function listenTcp(app: DaemonApp, { host, port }: TcpAddress, token: Buffer): OpenListener {
  const listener: Listener = { transport: 'tcp', token, rank: null }
  const shown = host.includes(':') ? `[${host}]` : host
  try {
    // Bun shares ports when it is not in development: two daemons would each get every other request
    const where = { hostname: host, port, reusePort: false }
    const server = Bun.serve({ ...common(app, listener), ...where })
    return open(server, `http://${shown}:${server.port}`, null)
  } catch (error) {
    throw new CkptError(
      'cannot_listen',
      `cannot listen at ${shown}:${port}: ${(error as Error).message}`,
    )
  }
}

function common(app: DaemonApp, listener: Listener) {
  return {
    // the routes have limits of their own, whose answers have our shape
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    development: false,
    fetch: (request: Request, server: Server<undefined>) =>
      app.fetch(request, { listener, server }),
  }
}

/** Over Unix sockets `server.timeout(request, 0)` is without effect (Bun 1.4.5), `idleTimeout` is not, though it has no type. */
function unixOptions(app: DaemonApp, listener: Listener, path: string) {
  const options = { ...common(app, listener), unix: path }
  return { ...options, idleTimeout: 0 } as typeof options
}

function open(server: Server<undefined>, address: string, path: string | null): OpenListener {
  return {
    address,
    refuse: () => void server.stop(false),
    async close() {
      const deadlineMs = performance.now() + DRAIN_MS
      while (server.pendingRequests > 0 && performance.now() < deadlineMs) {
        await Bun.sleep(DRAIN_POLL_MS)
      }
      await server.stop(true)
      if (path !== null) rmSync(path, { force: true })
    },
  }
}
