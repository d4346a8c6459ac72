import { readFile } from 'node:fs/promises'
import { type EngineAddress, isLoopback, parseEngineUrl } from './url.ts'

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
