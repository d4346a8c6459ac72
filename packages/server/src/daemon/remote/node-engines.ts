import { CkptError, type Failure } from '@ckpt/core'
import type { EngineAnswer, EngineCall, EngineHost } from '../../engines/host.ts'
import { type EngineAddress, splitEngineUrl } from '../../engines/url.ts'
import { checkAllowed } from '../updates/allowed-engines.ts'

/** Calls engines of this host for the leader. */
export class NodeEngines {
  readonly #host: EngineHost
  readonly #allowed: readonly string[] | null
  readonly #calls = new Map<number, AbortController>()
  #running = 0
  #idle: PromiseWithResolvers<void> | null = null

  /** @param allowed see {@link checkAllowed} */
  constructor(host: EngineHost, allowed: readonly string[] | null) {
    this.#host = host
    this.#allowed = allowed
  }

  /** @throws CkptError `engine_not_allowed`, and as `EngineHost.call` */
  async call(id: number, call: EngineCall): Promise<EngineAnswer> {
    const { method, url, uds, body } = call
    if (method !== 'GET' && method !== 'POST') throw new CkptError('bad_request', 'no method')
    checkAllowed({ url, uds }, this.#allowed)
    const controller = new AbortController()
    this.#calls.set(id, controller)
    this.#running++
    try {
      return await this.#host.call({ method, url, uds, body }, controller.signal)
    } finally {
      if (this.#calls.get(id) === controller) this.#calls.delete(id)
      this.#running--
      if (this.#running === 0) this.#idle?.resolve()
    }
  }

  /** @throws CkptError `engine_not_allowed` */
  async listener(address: EngineAddress): Promise<string | null> {
    splitEngineUrl(address.url)
    checkAllowed(address, this.#allowed)
    return this.#host.listener(address)
  }

  /** The leader does not wait for it any more. */
  end(id: number, failure: Failure): void {
    this.#calls.get(id)?.abort(CkptError.from(failure))
  }

  /** The leader is gone: a later one numbers its calls anew, and ends none of these. */
  forget(): void {
    this.#calls.clear()
  }

  /** Resolves when no engine is called. */
  async idle(): Promise<void> {
    if (this.#running === 0) return
    this.#idle ??= Promise.withResolvers<void>()
    await this.#idle.promise
    this.#idle = null
  }
}
