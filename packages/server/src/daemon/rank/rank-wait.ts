import { zmqPoll } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import type { EngineSocket } from './engine-socket.ts'
import type { RunHost } from './run-host.ts'

/** A wake-up that got lost costs no more than this. */
const POLL_MS_MAX = 200
/**
 * While something has moved within the last `WARM_FOR_MS` a rank does not sleep, or, where processors are few, not longer than
 * `NAP_MS`: after 25 ms code and processor have gone cold, and a list took twice as long.
 */
const NAP_MS = 1
const WARM_FOR_MS = 100

type EngineEvent =
  | { readonly type: 'connected' | 'disconnected'; readonly nowMs: number }
  | { readonly type: 'reply'; readonly body: Uint8Array; readonly nowMs: number }

/** The waits of one run of a rank: for its signal, its engine's worker, or a deadline. */
export class RankWait {
  readonly #host: RunHost
  readonly #signalFd: number
  /** When something has moved last. */
  #movedMs = clockMs()

  constructor(host: RunHost) {
    this.#host = host
    this.#signalFd = host.library.signalFd(host.signal)
  }

  /** Something has gone on. */
  moved(): void {
    this.#movedMs = clockMs()
  }

  /**
   * Blocks until there may be something to do, at the latest at `untilMs`.
   *
   * @param engine whose worker is waited for too; null: none is
   * @param woken something is to be done already
   * @returns whether the engine's worker, or the connection to it, has something
   */
  until(untilMs: number, engine: EngineSocket | null, woken: boolean): boolean {
    const nowMs = clockMs()
    const warm = nowMs < this.#movedMs + WARM_FOR_MS
    const pollMs = warm ? NAP_MS : (this.#host.tendMs ?? POLL_MS_MAX)
    const retryMs = engine?.retryMs ?? Number.POSITIVE_INFINITY
    const soonestMs = Math.min(untilMs, woken ? nowMs : nowMs + pollMs, nowMs + retryMs)
    const items: Parameters<typeof zmqPoll>[0] = [
      { fd: this.#signalFd },
      ...(engine?.pollItems ?? []),
    ]
    const waitMs = Math.max(0, Math.ceil(soonestMs - nowMs))
    const [, ...ready] = zmqPoll(items, waitMs, warm && this.#host.spins)
    return ready.includes(true) || engine?.retryMs != null
  }
}

/** Hands over what the engine's worker has done, in the order of its doing, and sends what it could not take before. */
export function takeEngineEvents(engine: EngineSocket, take: (event: EngineEvent) => void): void {
  engine.flush()
  for (let link = engine.nextLink(); link !== null; link = engine.nextLink()) {
    // a reply that came before the worker closed belongs before the disconnect
    if (link === 'disconnected') takeReplies(engine, take)
    take({ type: link, nowMs: clockMs() })
  }
  takeReplies(engine, take)
}

function takeReplies(engine: EngineSocket, take: (event: EngineEvent) => void): void {
  for (let body = engine.receive(); body !== null; body = engine.receive()) {
    take({ type: 'reply', body, nowMs: clockMs() })
  }
}
