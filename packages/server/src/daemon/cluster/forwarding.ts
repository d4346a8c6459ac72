import { CkptError } from '@ckpt/core'
import type { DaemonApp } from '../http/app.ts'
import { isForLeader } from '../http/forward.ts'
import type { Listener } from '../context.ts'
import { log } from '../log.ts'

/** A request of a client of another daemon. */
export interface ApiRequest {
  readonly op: 'api'
  /** Of the sender: parts of the answer that follow carry it. */
  readonly call: number
  readonly method: string
  /** With the query. */
  readonly path: string
  readonly body: string | null
}

export interface ApiAnswer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  /** null: it comes in parts. */
  readonly body: string | null
}

/** Parts of an answer that goes on for as long as an update does. */
export type ApiPost =
  | { readonly op: 'api_part'; readonly call: number; readonly text: string }
  | { readonly op: 'api_end'; readonly call: number }
/** The client is gone. */
export interface ApiCancel {
  readonly op: 'api_cancel'
  readonly call: number
}

/** Whoever reaches the leader over its cluster is a daemon that has the cluster's token. */
const FROM_DAEMON: Listener = { transport: 'tcp', token: null, rank: null }
const KEPT_HEADERS = ['content-type', 'ckpt-update-id', 'cache-control', 'allow']

/** The leader's side: answers what clients of one other daemon have asked that daemon. */
export class ForwardedCalls {
  readonly #app: () => DaemonApp
  readonly #post: (post: ApiPost) => void
  readonly #streams = new Map<number, ReadableStreamDefaultReader<Uint8Array>>()

  constructor(app: () => DaemonApp, post: (post: ApiPost) => void) {
    this.#app = app
    this.#post = post
  }

  async answer({ call, method, path, body }: ApiRequest): Promise<ApiAnswer> {
    const url = new URL(path, 'http://leader')
    if (!isForLeader(method, url.pathname)) {
      throw new CkptError(
        'not_supported',
        `${method} ${url.pathname} is not the leader's to answer`,
      )
    }
    const request = new Request(url.href, { method, body })
    const response = await this.#app().fetch(request, { listener: FROM_DAEMON, server: null })
    const headers: Record<string, string> = {}
    for (const name of KEPT_HEADERS) {
      const value = response.headers.get(name)
      if (value !== null) headers[name] = value
    }
    const { status } = response
    const streams = headers['content-type']?.startsWith('text/event-stream') ?? false
    if (!streams || response.body === null) return { status, headers, body: await response.text() }
    const reader = response.body.getReader() as ReadableStreamDefaultReader<Uint8Array>
    this.#streams.set(call, reader)
    void this.#carry(call, reader)
    return { status, headers, body: null }
  }

  async #carry(call: number, reader: ReadableStreamDefaultReader<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder()
    try {
      for (;;) {
        const { done, value } = await reader.read()
        if (done) break
        this.#post({ op: 'api_part', call, text: decoder.decode(value, { stream: true }) })
      }
    } catch (error) {
      const { message } = CkptError.wrap(error)
      log.warn('a stream for another daemon has ended early: {message}', { message })
    } finally {
      this.#streams.delete(call)
      this.#post({ op: 'api_end', call })
    }
  }

  cancel(call: number): void {
    this.#streams
      .get(call)
      ?.cancel()
      .catch(() => {})
  }

  /** The daemon is gone. */
  close(): void {
    for (const call of this.#streams.keys()) this.cancel(call)
  }
}

/** The follower's side: has the leader answer what its own clients ask. */
export class Forwarder {
  readonly #ask: (request: ApiRequest) => Promise<ApiAnswer>
  readonly #cancel: (cancel: ApiCancel) => void
  readonly #streams = new Map<number, ReadableStreamDefaultController<Uint8Array>>()
  readonly #encoder = new TextEncoder()
  #calls = 0

  constructor(
    ask: (request: ApiRequest) => Promise<ApiAnswer>,
    cancel: (cancel: ApiCancel) => void,
  ) {
    this.#ask = ask
    this.#cancel = cancel
  }

  /** @throws CkptError `leader_lost` */
  async forward(method: string, url: string, body: Uint8Array | null): Promise<Response> {
    const { pathname, search } = new URL(url)
    const call = this.#calls++
    const text = body === null ? null : new TextDecoder().decode(body)
    // a part may come before the answer does
    const stream = this.#stream(call)
    try {
      const path = `${pathname}${search}`
      const answer = await this.#ask({ op: 'api', call, method, path, body: text })
      const { status, headers } = answer
      if (answer.body !== null) this.#streams.delete(call)
      return new Response(answer.body ?? stream, { status, headers })
    } catch (error) {
      this.#streams.delete(call)
      throw error
    }
  }

  #stream(call: number): ReadableStream<Uint8Array> {
    return new ReadableStream({
      start: (controller) => void this.#streams.set(call, controller),
      cancel: () => {
        this.#streams.delete(call)
        this.#cancel({ op: 'api_cancel', call })
      },
    })
  }

  take(post: ApiPost): void {
    const controller = this.#streams.get(post.call)
    if (controller === undefined) return
    if (post.op === 'api_part') return controller.enqueue(this.#encoder.encode(post.text))
    this.#streams.delete(post.call)
    controller.close()
  }

  /** The leader is gone: what it still owes never comes. */
  lose(message: string): void {
    for (const controller of this.#streams.values()) {
      controller.error(new CkptError('leader_lost', message))
    }
    this.#streams.clear()
  }
}
