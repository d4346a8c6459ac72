import { createHash } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { defaultSocketPath, SERVE_DEFAULTS, type ServeOptions } from '../daemon/options.ts'
import { DaemonClient, daemonAddress } from './client.ts'

/** A daemon that runs in this process for one call. */
export interface LocalDaemon {
  readonly client: DaemonClient
  close(reason: string): Promise<void>
}

/**
 * Starts a daemon in this process. Its socket, and with it its journal, belong to the engines: when a call dies, the next one
 * for the same engines releases what it left waiting, and two calls at once for the same engines are refused.
 */
export async function startLocalDaemon(
  engines: readonly string[],
  options: Partial<ServeOptions>,
): Promise<LocalDaemon> {
  // the daemon's modules take a moment to load, and with a running daemon they are not needed
  const { serve } = await import('../daemon/serve.ts')
  const key = createHash('sha256').update(engines.join('\n')).digest('hex').slice(0, 16)
  const socket = join(dirname(defaultSocketPath()), `update-${key}.sock`)
  mkdirSync(dirname(socket), { recursive: true, mode: 0o700 })
  const daemon = await serve({ ...SERVE_DEFAULTS, ...options, uds: socket })
  return {
    client: new DaemonClient(daemonAddress(socket)),
    close: (reason) => daemon.close(reason),
  }
}
