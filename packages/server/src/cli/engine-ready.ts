import type { EngineTarget } from '@ckpt/core'
import { CkptError } from '@ckpt/core'
import { lmdeployObstacle } from '../engines/lmdeploy.ts'
import { splitEngineUrl } from '../engines/url.ts'

export interface ReadyOptions {
  /** 0: for ever, as checkpoint-engine's client waits. */
  readonly timeoutMs: number
  readonly signal: AbortSignal
  /** Called before each further try. */
  onWait(reason: string, waitedMs: number): void
}

const TRY_MS = 10_000
const FIRST_PAUSE_MS = 100
const PAUSE_MAX_MS = 5_000

/**
 * Waits until the engine says that it is ready. SGLang is asked with `/ping`, because its `/health` is a request of its own
 * that generates a token.
 *
 * @throws CkptError `engine_unreachable` with what was seen last, `aborted`
 */
export async function waitForEngine(target: EngineTarget, options: ReadyOptions): Promise<void> {
  const startMs = performance.now()
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MAX_MS)) {
    const reason = await notReady(target, options.signal)
    if (options.signal.aborted)
      throw new CkptError('aborted', 'interrupted while waiting for the engine')
    if (reason === null) return
    const waitedMs = performance.now() - startMs
    const leftMs = options.timeoutMs === 0 ? Number.POSITIVE_INFINITY : options.timeoutMs - waitedMs
    if (leftMs <= 0)
      throw new CkptError('engine_unreachable', unreachable(target, waitedMs, reason))
    options.onWait(reason, waitedMs)
    await pause(Math.min(pauseMs, leftMs), options.signal)
  }
}

/** Where an engine listens, for messages. */
export function whereOf({ url, uds }: EngineTarget): string {
  return uds === undefined ? url : `${url} by the socket ${uds}`
}

function unreachable(target: EngineTarget, waitedMs: number, reason: string): string {
  return `the engine at ${whereOf(target)} did not become ready in ${(waitedMs / 1000).toFixed(1)} s: ${reason}`
}

/** Null when ready, else why not. */
async function notReady(target: EngineTarget, signal: AbortSignal): Promise<string | null> {
  switch (target.engine ?? 'auto') {
    case 'vllm':
      return refusal('/health', await ask(target, '/health', signal))
    case 'sglang':
      return sglangRefusal(target, signal)
    case 'lmdeploy':
      return lmdeployRefusal(await ask(target, '/update_weights_from_ipc', signal))
    default: {
      const ping = await ask(target, '/ping', signal)
      if (!isMissing(ping)) return refusal('/ping', ping)
      return refusal('/health', await ask(target, '/health', signal))
    }
  }
}

/** A server without `/ping`, or a proxy that does not let it through, is up when it has the route of updates, which is none for GET. */
async function sglangRefusal(target: EngineTarget, signal: AbortSignal): Promise<string | null> {
  const ping = await ask(target, '/ping', signal)
  if (!isMissing(ping)) return refusal('/ping', ping)
  const update = await ask(target, '/update_weights_from_ipc', signal)
  if (typeof update !== 'string' && update.status === 405) return null
  const words =
    refusal('/update_weights_from_ipc', update) ?? 'but GET /update_weights_from_ipc is answered'
  return `${refusal('/ping', ping)}, ${words}: is it SGLang?`
}

function isMissing(answer: Answer | string): answer is Answer {
  return typeof answer !== 'string' && [404, 405].includes(answer.status)
}

interface Answer {
  readonly status: number
  readonly text: string
}

async function ask(
  target: EngineTarget,
  path: string,
  signal: AbortSignal,
): Promise<Answer | string> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(TRY_MS)])
  const init: BunFetchRequestInit = { signal: limit, proxy: false }
  if (target.uds !== undefined) init.unix = target.uds
  try {
    // an endpoint may name the route of the update, as the HTTP API's `update_url` does
    const { base } = splitEngineUrl(target.url)
    const response = await fetch(base + path, init)
    return { status: response.status, text: await response.text() }
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

function refusal(path: string, answer: Answer | string): string | null {
  if (typeof answer === 'string') return answer
  return answer.status >= 200 && answer.status < 300 ? null : `${path} answered ${answer.status}`
}

function lmdeployRefusal(answer: Answer | string): string | null {
  const refused = refusal('/update_weights_from_ipc', answer)
  if (refused !== null || typeof answer === 'string') return refused
  try {
    const obstacle = lmdeployObstacle(JSON.parse(answer.text))
    return obstacle === null ? null : `/update_weights_from_ipc: ${obstacle}`
  } catch {
    return '/update_weights_from_ipc answered no JSON'
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(done, ms)
    function done() {
      clearTimeout(timer)
      signal.removeEventListener('abort', done)
      resolve()
    }
    signal.addEventListener('abort', done)
  })
}
