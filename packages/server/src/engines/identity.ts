import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { CkptError } from '@ckpt/core'
import type { EngineAddress, EngineClient } from './client.ts'
import { parseEngineUrl } from './client.ts'

/** `st` of /proc/net/tcp for a listening socket. */
const TCP_LISTEN = '0A'
/** `Flags` of /proc/net/unix for a listening socket (__SO_ACCEPTCON). */
const UNIX_LISTEN = 0x10000

/**
 * Inode of the socket that the engine listens with, which changes when the engine is started again. Null when it cannot be
 * seen from here: another host, or another network namespace.
 */
export async function listenerInode(address: EngineAddress): Promise<string | null> {
  if (address.uds !== null) return unixListener(address.uds)
  const url = parseEngineUrl(address.url)
  if (!isLoopback(url)) return null
  const port = Number(url.port || (url.protocol === 'https:' ? 443 : 80))
  return (await tcpListener('/proc/net/tcp', port)) ?? (await tcpListener('/proc/net/tcp6', port))
}

/** What {@link engineStart} says when nobody takes a connection: the process of before has ended. */
export const NOT_RUNNING = 'not running'

const START_TIME = /^process_start_time_seconds(?:\{[^}]*\})? (\S+)$/m

/**
 * What tells this start of an engine from others: the inode of its listening socket, or, where that cannot be seen from here, when
 * its process started, as its Prometheus route tells it (vLLM's API server does, unless several processes share it). Null: it
 * does not say. Never throws.
 */
export async function engineStart(
  client: EngineClient,
  signal: AbortSignal,
): Promise<string | null> {
  const listener = await listenerInode(client.address)
  if (listener !== null) return listener
  try {
    const { ok, text } = await client.get('/metrics', signal)
    const seconds = ok ? START_TIME.exec(text)?.[1] : undefined
    return seconds === undefined ? null : `started ${seconds}`
  } catch (error) {
    return isRefusal(error) ? NOT_RUNNING : null
  }
}

/** Nobody listens there, as opposed to a network that fails. */
function isRefusal(error: unknown): boolean {
  const { code, message } = CkptError.wrap(error)
  return code === 'engine_unreachable' && /ECONNREFUSED|ENOENT/.test(message)
}

/** `localhost`, 127.0.0.0/8 and ::1. */
export function isLoopback(url: URL): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (host === 'localhost' || host === '::1') return true
  return isIP(host) === 4 && host.startsWith('127.')
}

async function linesOf(path: string): Promise<string[]> {
  try {
    return (await readFile(path, 'utf8')).split('\n').slice(1)
  } catch {
    return []
  }
}

async function tcpListener(path: string, port: number): Promise<string | null> {
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  for (const line of await linesOf(path)) {
    const fields = line.trim().split(/\s+/)
    if (fields[1]?.endsWith(suffix) && fields[3] === TCP_LISTEN) return fields[9] ?? null
  }
  return null
}

async function unixListener(socketPath: string): Promise<string | null> {
  for (const line of await linesOf('/proc/net/unix')) {
    const [, , , flags, , , inode, path] = line.trim().split(/\s+/)
    if (path !== socketPath || flags === undefined) continue
    if ((Number.parseInt(flags, 16) & UNIX_LISTEN) !== 0) return inode ?? null
  }
  return null
}
