import { CkptError } from '@ckpt/core'
import type { EngineClient } from './client.ts'

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
  const listener = await listenerWithin(client, signal)
  if (listener !== null) return listener
  try {
    const { ok, text } = await client.get('/metrics', signal)
    const seconds = ok ? START_TIME.exec(text)?.[1] : undefined
    return seconds === undefined ? null : `started ${seconds}`
  } catch (error) {
    return isRefusal(error) ? NOT_RUNNING : null
  }
}

/** Null also where it is not seen in time: another daemon may have to be asked. */
async function listenerWithin(client: EngineClient, signal: AbortSignal): Promise<string | null> {
  const { promise: ended, resolve } = Promise.withResolvers<null>()
  const end = () => resolve(null)
  if (signal.aborted) end()
  signal.addEventListener('abort', end, { once: true })
  try {
    return await Promise.race([client.host.listener(client.address), ended])
  } finally {
    signal.removeEventListener('abort', end)
  }
}

/** Nobody listens there, as opposed to a network that fails. */
function isRefusal(error: unknown): boolean {
  const { code, message } = CkptError.wrap(error)
  return code === 'engine_unreachable' && /ECONNREFUSED|ENOENT/.test(message)
}
