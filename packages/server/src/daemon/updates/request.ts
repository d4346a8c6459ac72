import { CkptError } from '@ckpt/core'
import type { EngineClient } from '../../engines/client.ts'

/** After the timeout of the update, within which an engine that knows it has answered. */
const GRACE_MS = 60_000

/**
 * The update request that an engine has not answered yet. Until it has, another update would only queue up behind it; but an
 * answer may never come, where the connection does not end with the process at its other end.
 */
export class EngineRequest {
  readonly #controller = new AbortController()
  readonly #client: Pick<EngineClient, 'address' | 'host'>
  readonly #listener: Promise<string | null>
  readonly #limitMs: number
  #answered = false

  /** @param timeoutMs of the update, from now */
  constructor(
    client: Pick<EngineClient, 'address' | 'host'>,
    timeoutMs: number,
    graceMs = GRACE_MS,
  ) {
    this.#client = client
    this.#listener = client.host.listener(client.address)
    this.#limitMs = performance.now() + timeoutMs + graceMs
  }

  /** Aborts when the engine that had the request is gone. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  answered(): void {
    this.#answered = true
  }

  /**
   * Whether nothing is to be waited for any more: it was answered, another process listens at the engine's address, or the time
   * is up. In the last case the request goes on, because what the engine's workers may still read must not be freed.
   */
  async isOver(): Promise<boolean> {
    if (this.#answered) return true
    const before = await this.#listener
    const { address, host } = this.#client
    const now = await host.listener(address)
    // null: nobody listens, as while an engine ends or starts
    if (before !== null && now !== null && now !== before) {
      const message = `${address.url} was started again before it answered`
      this.#controller.abort(new CkptError('engine_disconnected', message))
      return true
    }
    return performance.now() >= this.#limitMs
  }
}
