import { CkptError } from '@ckpt/core'
import { listenerInode } from './identity.ts'
import type { EngineAddress } from './url.ts'

/** The most bytes of an answer that are read: `/openapi.json` of vLLM has half a megabyte. */
const ANSWER_BYTES_MAX = 4 * 2 ** 20

export interface EngineCall {
  readonly method: 'GET' | 'POST'
  readonly url: string
  readonly uds: string | null
  /** JSON; null: none. */
  readonly body: string | null
}

export interface EngineAnswer {
  readonly status: number
  readonly text: string
}

/** Where engines are called from: `localhost` and Unix sockets are that host's. */
export interface EngineHost {
  /** @throws CkptError `engine_unreachable`, or what the signal was aborted with */
  call(call: EngineCall, signal: AbortSignal): Promise<EngineAnswer>
  /** See {@link listenerInode}. */
  listener(address: EngineAddress): Promise<string | null>
}

/** This host. @param token sent as a bearer token where it is not null */
export function enginesHere(token: string | null): EngineHost {
  return { call: (call, signal) => callEngine(call, token, signal), listener: listenerInode }
}

async function callEngine(
  { method, url, uds, body }: EngineCall,
  token: string | null,
  signal: AbortSignal,
): Promise<EngineAnswer> {
  const headers: Record<string, string> = {}
  // LMDeploy refuses others, also where nothing is sent
  if (method === 'POST') headers['content-type'] = 'application/json'
  if (token !== null) headers.authorization = `Bearer ${token}`
  try {
    const response = await fetch(url, {
      method,
      headers,
      body: body ?? undefined,
      signal,
      // an answer elsewhere would be outside the allow-list
      redirect: 'manual',
      // Bun's own limit of five minutes
      timeout: false,
      // a connection that an engine has closed meanwhile would fail the call
      keepalive: false,
      ...(uds === null ? {} : { unix: uds }),
    } as RequestInit)
    return { status: response.status, text: await readText(response) }
  } catch (error) {
    if (signal.aborted) throw CkptError.wrap(signal.reason)
    const where = uds === null ? url : `${url} at ${uds}`
    throw new CkptError('engine_unreachable', `${where}: ${describeFetchError(error)}`)
  }
}
async function readText(response: Response): Promise<string> {
  if (response.body === null) return ''
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body) {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes > ANSWER_BYTES_MAX) throw new Error(`its answer exceeds ${ANSWER_BYTES_MAX} bytes`)
  }
  return Buffer.concat(chunks).toString('utf8')
}

/** Bun's text for every failed connection is a question about a typo; the code tells more. */
function describeFetchError(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const { code } = error as { code?: unknown }
  return typeof code === 'string' ? code : error.message
}
