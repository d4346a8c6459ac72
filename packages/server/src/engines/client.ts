import { CkptError, type Failure } from '@ckpt/core'
import type { EngineAnswer, EngineHost } from './host.ts'
import { type EngineAddress, type EngineUrl, splitEngineUrl } from './url.ts'
import { engineWords } from './words.ts'

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

/** HTTP calls to one engine. No timeouts of its own: every call takes the caller's signal. */
export class EngineClient {
  readonly address: EngineAddress
  readonly host: EngineHost
  readonly #url: EngineUrl

  /**
   * @param host where it is called from
   * @throws CkptError `bad_request` when the URL is none
   */
  constructor(address: EngineAddress, host: EngineHost) {
    this.address = address
    this.host = host
    this.#url = splitEngineUrl(address.url)
  }

  /** See {@link EngineUrl}. */
  get base(): string {
    return this.#url.base
  }

  get updatePath(): string | null {
    return this.#url.updatePath
  }

  get(path: string, signal: AbortSignal): Promise<EngineReply> {
    return this.#call('GET', `${this.base}${path}`, undefined, signal)
  }

  post(path: string, body: unknown, signal: AbortSignal): Promise<EngineReply> {
    return this.#call('POST', `${this.base}${path}`, body, signal)
  }

  /** Posts to the URL's own path, or to `path` of the server when the URL has none. */
  postUpdate(path: string, body: unknown, signal: AbortSignal): Promise<EngineReply> {
    const { origin, updatePath } = this.#url
    if (updatePath === null) return this.post(path, body, signal)
    return this.#call('POST', `${origin}${updatePath}`, body, signal)
  }

  async #call(
    method: 'GET' | 'POST',
    url: string,
    body: unknown,
    signal: AbortSignal,
  ): Promise<EngineReply> {
    const { uds } = this.address
    const text = body === undefined ? null : JSON.stringify(body)
    return replyOf(await this.host.call({ method, url, uds, body: text }, signal))
  }
}

/** What a signal of this program was aborted with. */
export function reasonOf(signal: AbortSignal): CkptError {
  return CkptError.wrap(signal.reason)
}

/** Rejects when the signal aborts. */
export function abortOf(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) return reject(reasonOf(signal))
    signal.addEventListener('abort', () => reject(reasonOf(signal)), { once: true })
  })
}

/** A signal that ends with `signal`, or with `failure` after `ms`. */
export function signalWithin(signal: AbortSignal, ms: number, failure: Failure): AbortSignal {
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(CkptError.from(failure)), Math.max(0, ms))
  timer.unref()
  return AbortSignal.any([signal, controller.signal])
}

function replyOf({ status, text }: EngineAnswer): EngineReply {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    json = undefined
  }
  const ok = status >= 200 && status < 300
  return { status, ok, text, json, words: engineWords(json, text) }
}
