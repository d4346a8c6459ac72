import { CkptError, type Phase } from '@ckpt/core'
import type { Posting, Readiness, UpdateVerdict } from './adapter.ts'
import type { EngineClient, EngineReply } from './client.ts'

/** Of a server or a proxy that has not waited any longer: what the engine does is not known. */
const TIMEOUTS: readonly number[] = [408, 499]

/** The server does not have this route (405: not with this method). */
export function isMissing(reply: EngineReply): boolean {
  return reply.status === 404 || reply.status === 405 || reply.status === 501
}

/** @throws CkptError `engine_failed` with the engine's words unless the answer is 2xx */
export function must(reply: EngineReply, phase: Phase): void {
  if (reply.ok) return
  throw new CkptError(
    'engine_failed',
    `${phase}: the engine answered ${reply.status}: ${reply.words}`,
    {
      phase,
    },
  )
}

/**
 * @throws CkptError `not_supported` when the server has no such route, else as {@link must}
 */
export function mustPause(
  client: EngineClient,
  path: string,
  reply: EngineReply,
  posting: Posting,
): void {
  const isMissed = isMissing(reply)
  const isTold = reply.status >= 400 && reply.status < 500 && !TIMEOUTS.includes(reply.status)
  if (isMissed || isTold) posting.refused()
  if (isMissed) throw new CkptError('not_supported', `${client.base} has no route ${path}`)
  must(reply, 'pause')
}

/** An answer that may say `success: false` in a 200; nothing of its workers is in it. */
export function judgeSuccess(reply: EngineReply): UpdateVerdict {
  const { success } = (reply.json ?? {}) as { success?: unknown }
  const ok = reply.ok && success !== false
  return { ok, message: reply.words, structured: false, reload: null }
}

/**
 * Readiness by a health route. While a server loads or restarts it, or a proxy before it, answers 502 to 504; any other answer
 * comes from a server that can take the request, which then says itself what is wrong.
 */
export async function lookAt(
  client: EngineClient,
  path: string,
  signal: AbortSignal,
): Promise<Readiness> {
  const reply = await client.get(path, signal)
  const ready = reply.status < 502 || reply.status > 504
  const words = ready ? '' : `${path} answered ${reply.status}: ${reply.words}`
  return { ready, words, deviceUuids: null }
}
