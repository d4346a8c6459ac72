import { existsSync, readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import type {
  CheckpointDetail,
  CheckpointsAnswer,
  DropAnswer,
  EngineMapAnswer,
  EngineMapQuery,
  ErrorBody,
  GatherAnswer,
  Metas,
  PullRequest,
  RegisterAnswer,
  RegisterRequest,
  StatusAnswer,
  TraceAnswer,
  UpdateEvent,
  UpdateReport,
  UpdateRequest,
  UpdateState,
} from '@ckpt/core'
import { CkptError } from '@ckpt/core'
import { defaultSocketPath } from '../daemon/options.ts'
import { CommandError, usageError } from './exit.ts'
import { readServerSentEvents } from './server-sent-events.ts'

export interface DaemonAddress {
  /** What stands before the path of a request. */
  readonly base: string
  /** Path of a Unix socket; null: TCP. */
  readonly unix: string | null
  readonly token: string | null
}

/**
 * `/path`, `./path`, `unix:/path`, `http://host:port` or `host:port`; without a text the default socket.
 *
 * @param tokenFile file whose only line is the token, for TCP
 */
export function daemonAddress(text?: string, tokenFile?: string): DaemonAddress {
  const token = tokenFile === undefined ? null : readToken(tokenFile)
  const target = text ?? defaultSocketPath()
  if (target.startsWith('unix:')) return onSocket(target.slice('unix:'.length), token)
  if (/^https?:\/\//.test(target)) return { base: target.replace(/\/+$/, ''), unix: null, token }
  if (target.includes('/') || existsSync(target)) return onSocket(target, token)
  if (/^[^\s/]+:\d+$/.test(target)) return { base: `http://${target}`, unix: null, token }
  throw usageError(`--daemon '${target}' is neither a socket's path nor http://HOST:PORT`)
}

function onSocket(path: string, token: string | null): DaemonAddress {
  return { base: 'http://localhost', unix: resolve(path), token }
}

function readToken(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    throw usageError(`--token-file ${path} cannot be read: ${(error as Error).message}`)
  }
}

/** How an address is shown to people. */
export function addressText(address: DaemonAddress): string {
  return address.unix === null ? address.base : `unix:${address.unix}`
}

/** Three of the daemon's heartbeats, which it sends into a stream of events every 10 seconds. */
const SILENCE_MS = 30_000

/** The daemon has sent nothing for so long that its connection is taken for dead. */
export class SilenceError extends CommandError {}

/**
 * The daemon's routes. Requests have no time limit of their own: the daemon ends an update, or the user does. Those that
 * follow an update end with a {@link SilenceError} when nothing comes for `silenceMs`: a connection can be dead without
 * either end having heard of it.
 */
export class DaemonClient {
  constructor(
    readonly address: DaemonAddress,
    readonly silenceMs = SILENCE_MS,
  ) {}

  /** Whether a daemon answers there. */
  async answers(): Promise<boolean> {
    const { unix } = this.address
    if (unix !== null && !existsSync(unix)) return false
    try {
      const response = await this.#fetch('GET', '/v1/healthz')
      await response.body?.cancel()
      return response.ok
    } catch {
      return false
    }
  }

  register(name: string, request: RegisterRequest): Promise<RegisterAnswer> {
    return this.#json('POST', `${checkpoint(name)}/files`, request)
  }

  /** Over a Unix socket only. The daemon ends it when `signal` ends the request. */
  pull(name: string, request: PullRequest, signal: AbortSignal): Promise<RegisterAnswer> {
    return this.#json('POST', `${checkpoint(name)}/pull`, request, signal)
  }

  gather(name: string): Promise<GatherAnswer> {
    return this.#json('POST', `${checkpoint(name)}/gather-metas`, {})
  }

  /** Runs an update and waits for its report. */
  update(name: string, request: UpdateRequest): Promise<UpdateReport> {
    return this.#json('POST', `${checkpoint(name)}/update`, request)
  }

  /** Starts an update and returns at once; {@link updateEvents} follows it. */
  startUpdate(name: string, request: UpdateRequest): Promise<UpdateState> {
    return this.#json('POST', `${checkpoint(name)}/update`, { ...request, wait: false })
  }

  async updateState(id: string): Promise<UpdateState> {
    const silence = new Silence(this.silenceMs)
    try {
      const response = await this.#checked('GET', update(id), undefined, silence.signal)
      return (await response.json()) as UpdateState
    } catch (error) {
      throw silence.happened ? this.#silent() : error
    } finally {
      silence.stop()
    }
  }

  trace(id: string): Promise<TraceAnswer> {
    return this.#json('GET', `${update(id)}/trace`)
  }

  abort(id: string, reason: string): Promise<UpdateState> {
    return this.#json('POST', `${update(id)}/abort`, { reason })
  }

  /** Ends with the update, or earlier when the connection does. */
  async *updateEvents(id: string): AsyncGenerator<UpdateEvent> {
    const silence = new Silence(this.silenceMs)
    try {
      const response = await this.#checked('GET', `${update(id)}/events`, undefined, silence.signal)
      if (response.body === null) return
      for await (const { data } of readServerSentEvents(silence.watch(response.body))) {
        yield JSON.parse(data) as UpdateEvent
      }
    } catch (error) {
      throw silence.happened ? this.#silent() : error
    } finally {
      silence.stop()
    }
  }

  list(): Promise<CheckpointsAnswer> {
    return this.#json('GET', '/v1/checkpoints')
  }

  describe(name: string): Promise<CheckpointDetail> {
    return this.#json('GET', checkpoint(name))
  }

  drop(name: string, force: boolean): Promise<DropAnswer> {
    return this.#json('DELETE', `${checkpoint(name)}${force ? '?force=true' : ''}`)
  }

  status(): Promise<StatusAnswer> {
    return this.#json('GET', '/v1/status')
  }

  engineMap(query: EngineMapQuery): Promise<EngineMapAnswer> {
    return this.#json('GET', `/v1/engine-map?${new URLSearchParams(query)}`)
  }

  metas(): Promise<Metas> {
    return this.#json('GET', '/v1/metas')
  }

  async #json<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
    const response = await this.#checked(method, path, body, signal)
    return (await response.json()) as T
  }

  async #checked(
    method: string,
    path: string,
    body?: unknown,
    signal?: AbortSignal,
  ): Promise<Response> {
    const response = await this.#fetch(method, path, body, signal)
    if (response.ok) return response
    const text = await response.text()
    throw (
      errorOf(text) ?? this.#strange(`${method} ${path}: ${response.status} ${text.slice(0, 200)}`)
    )
  }

  async #fetch(
    method: string,
    path: string,
    body?: unknown,
    signal?: AbortSignal,
  ): Promise<Response> {
    const { base, unix, token } = this.address
    const headers: Record<string, string> = {}
    if (token !== null) headers.authorization = `Bearer ${token}`
    if (body !== undefined) headers['content-type'] = 'application/json'
    const init: BunFetchRequestInit = { method, headers, proxy: false, timeout: false }
    if (body !== undefined) init.body = JSON.stringify(body)
    if (unix !== null) init.unix = unix
    if (signal !== undefined) {
      init.signal = signal
      // an idle connection that is used again may be dead as well
      init.keepalive = false
    }
    try {
      return await fetch(base + path, init)
    } catch (error) {
      throw this.#unreachable(error instanceof Error ? error.message : String(error))
    }
  }

  #unreachable(reason: string): CommandError {
    const { unix } = this.address
    const gone = unix !== null && !existsSync(unix)
    const refused = /ECONNREFUSED|Unable to connect/.test(reason)
    const why = gone ? 'there is no such socket' : refused ? 'nobody listens there' : reason
    const message = `no daemon answers at ${addressText(this.address)}: ${why}`
    return new CommandError({ code: 'daemon_unreachable', message })
  }

  #silent(): SilenceError {
    const seconds = Number((this.silenceMs / 1000).toFixed(1))
    return new SilenceError({
      code: 'daemon_unreachable',
      message: `the daemon at ${addressText(this.address)} has sent nothing for ${seconds} s`,
    })
  }

  #strange(answer: string): CommandError {
    return new CommandError({
      code: 'daemon_unreachable',
      message: `what answers at ${addressText(this.address)} is not a ckpt daemon: ${answer}`,
    })
  }
}

/** Ends a request when nothing has come for `limitMs`. */
class Silence {
  readonly #limitMs: number
  readonly #controller = new AbortController()
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor(limitMs: number) {
    this.#limitMs = limitMs
    this.#restart()
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get happened(): boolean {
    return this.#controller.signal.aborted
  }

  /** The body, of which every chunk breaks the silence. */
  async *watch(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of body) {
      this.#restart()
      yield chunk
    }
  }

  stop(): void {
    clearTimeout(this.#timer)
  }

  #restart(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#controller.abort(), this.#limitMs)
  }
}

function checkpoint(name: string): string {
  return `/v1/checkpoints/${encodeURIComponent(name)}`
}

function update(id: string): string {
  return `/v1/updates/${encodeURIComponent(id)}`
}

function errorOf(text: string): CkptError | null {
  try {
    const { error } = JSON.parse(text) as ErrorBody
    return typeof error?.code === 'string' ? CkptError.from(error) : null
  } catch {
    return null
  }
}
