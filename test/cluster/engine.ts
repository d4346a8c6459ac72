import type { EngineWeights } from '@ckpt/core'
import { CKPT } from '../support/process.ts'
import { Child } from './child.ts'
import { until } from '../support/until.ts'

const HOLD_MS = 10_000

/** One reference engine. It listens at a Unix socket: whoever watches it need not be in its network namespace. */
export class TestEngine {
  readonly child: Child
  readonly socket: string
  /** Of the rank that updates it. */
  readonly rank: number

  constructor(
    rank: number,
    socket: string,
    within: readonly string[] = [],
    more: readonly string[] = [],
  ) {
    this.rank = rank
    this.socket = socket
    const where = ['--listen', `unix:${socket}`, '--devices', 'host:2']
    this.child = new Child(`engine ${rank}`, [...within, ...CKPT, 'engine', ...where, ...more])
  }

  get target(): { url: string; uds: string; ranks: number[] } {
    return { url: `http://engine-${this.rank}`, uds: this.socket, ranks: [this.rank] }
  }

  async #fetch(path: string, limitMs: number, body?: unknown): Promise<Response> {
    const init: Record<string, unknown> = { unix: this.socket, keepalive: false }
    if (body !== undefined) Object.assign(init, { method: 'POST', body: JSON.stringify(body) })
    const signal = AbortSignal.timeout(limitMs)
    return fetch(`http://engine${path}`, { ...init, signal } as RequestInit)
  }

  /** What it does wrong from now on; what it holds goes on. */
  async arm(...faults: string[]): Promise<void> {
    const { status } = await this.#fetch('/v1/faults', HOLD_MS, { faults })
    if (status !== 200) throw new Error(`the engine does not know ${faults.join()}`)
  }

  /** Until a fault holds it. */
  async holds(): Promise<void> {
    await until(`engine ${this.rank} to hold`, HOLD_MS, async () => {
      const answer = await this.#fetch('/v1/faults', HOLD_MS)
      return ((await answer.json()) as { holding: boolean }).holding
    })
  }

  /** Answers when none of its workers is in an update. @throws Error after `limitMs` */
  async weights(limitMs: number): Promise<EngineWeights> {
    try {
      return (await (await this.#fetch('/v1/weights', limitMs)).json()) as EngineWeights
    } catch (error) {
      const { message } = error as Error
      throw new Error(`engine ${this.rank} has not left the update in ${limitMs} ms: ${message}`)
    }
  }

  async isPaused(): Promise<boolean> {
    const answer = await this.#fetch('/is_paused', HOLD_MS)
    return ((await answer.json()) as { is_paused: boolean }).is_paused
  }
}
