import { CkptError, type Failure } from '@ckpt/core'
import { engineWords } from './words.ts'

/** The most bytes of an answer that are read: `/openapi.json` of vLLM has half a megabyte. */
const ANSWER_BYTES_MAX = 4 * 2 ** 20

export interface EngineReply {
  readonly status: number
  /** 2xx. */
  readonly ok: boolean
  readonly text: string
  /** The parsed body; undefined when it is not JSON. */
  readonly json: unknown
  /** What the engine says, for messages. */
  readonly words: string
}

export interface EngineAddress {
  readonly url: string
  /** Unix socket that the engine listens at. */
  readonly uds: string | null
  /** Sent as a bearer token where the engine wants one. */
  readonly token: string | null
}

const UPDATE_PATHS = ['/collective_rpc', '/update_weights_from_ipc']

/** HTTP calls to one engine. No timeouts of its own: every call takes the caller's signal. */
export class EngineClient {
  readonly address: EngineAddress
  /** Path of the update as the URL gives it; null when the URL ends at the server. */
  readonly updatePath: string | null
  readonly #base: string

  /** @throws CkptError `bad_request` when the URL is none */
  constructor(address: EngineAddress) {
    this.address = address
    const url = parseEngineUrl(address.url)
    const path = url.pathname.replace(/\/+$/, '')
    const known = UPDATE_PATHS.find((one) => path.endsWith(one))
    this.updatePath = path === '' ? null : `${path}${url.search}`
    const prefix = known === undefined ? '' : path.slice(0, -known.length)
    this.#base = `${url.protocol}//${url.host}${prefix}`
  }

  /** Scheme, host, port and prefix of the server: the same for every route of it. */
  get base(): string {
    return this.#base
  }

  get(path: string, signal: AbortSignal): Promise<EngineReply> {
    return this.#call('GET', `${this.#base}${path}`, undefined, signal)
  }

  post(path: string, body: unknown, signal: AbortSignal): Promise<EngineReply> {
    return this.#call('POST', `${this.#base}${path}`, body, signal)
  }

  /** Posts to the URL's own path, or to `path` of the server when the URL has none. */
  postUpdate(path: string, body: unknown, signal: AbortSignal): Promise<EngineReply> {
    const { origin } = parseEngineUrl(this.address.url)
    if (this.updatePath === null) return this.post(path, body, signal)
    return this.#call('POST', `${origin}${this.updatePath}`, body, signal)
  }

  async #call(
    method: 'GET' | 'POST',
    url: string,
    body: unknown,
    signal: AbortSignal,
  ): Promise<EngineReply> {
    const { uds, token } = this.address
    const headers: Record<string, string> = {}
    if (body !== undefined) headers['content-type'] = 'application/json'
    if (token !== null) headers.authorization = `Bearer ${token}`
    try {
      const response = await fetch(url, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        // an answer elsewhere would be outside the allow-list
        redirect: 'manual',
        // Bun's own limit of five minutes
        timeout: false,
        // a connection that an engine has closed meanwhile would fail the call
        keepalive: false,
        ...(uds === null ? {} : { unix: uds }),
      } as RequestInit)
      return await readReply(response)
    } catch (error) {
      if (signal.aborted) throw reasonOf(signal)
      throw new CkptError(
        'engine_unreachable',
        `${this.#whereTo(url)}: ${describeFetchError(error)}`,
      )
    }
  }

  #whereTo(url: string): string {
    return this.address.uds === null ? url : `${url} at ${this.address.uds}`
  }
}

/** @throws CkptError `bad_request` */
export function parseEngineUrl(text: string): URL {
  const url = URL.parse(text)
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:')) {
    throw new CkptError('bad_request', `engine URL '${text}' is not an http URL`)
  }
  return url
}

/** What a signal of this program was aborted with. */
export function reasonOf(signal: AbortSignal): CkptError {
  return CkptError.wrap(signal.reason)
}

/** A signal that ends with `signal`, or with `failure` after `ms`. */
export function signalWithin(signal: AbortSignal, ms: number, failure: Failure): AbortSignal {
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(CkptError.from(failure)), Math.max(0, ms))
  timer.unref()
  return AbortSignal.any([signal, controller.signal])
}

async function readReply(response: Response): Promise<EngineReply> {
  const text = await readText(response)
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    json = undefined
  }
  const { status, ok } = response
  return { status, ok, text, json, words: engineWords(json, text) }
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
