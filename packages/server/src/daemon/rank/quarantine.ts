import { Keeper, type LeftConversation } from './keeper.ts'
import { clockMs } from '../clock.ts'

/** The most sockets that are kept for workers of which nothing but a word is owed; the oldest go first. */
const SOCKETS_MAX = 64
/** A stream that is idle takes a moment to say so. */
const SWEEP_SETTLE_MS = 5
/** For copies in flight when the process ends. */
const SETTLE_MS = 250

/** Device memory that copies write. */
export interface KeptMemory {
  readonly bytes: number
  /** See `Ring`. */
  settle(timeoutMs: number): boolean
  free(): void
}

/** What a run leaves behind. */
export interface KeptRun {
  readonly run: number
  /** null: freed. */
  readonly ring: KeptMemory | null
  /** A worker may still read the ring. */
  readonly read: boolean
  /** No copy writes the ring any more, nor reads the checkpoint for it. */
  readonly settled: boolean
  /** A conversation whose worker may still connect or has not left; null: there is none. */
  readonly conversation: LeftConversation | null
}

export interface QuarantineListener {
  settled(run: number): void
  freed(run: number, bytes: number): void
  /** The socket at `address` is kept for its worker, and later: it is not any more. */
  kept(address: string): void
  left(address: string): void
}

interface Kept {
  readonly run: number
  ring: KeptMemory | null
  read: boolean
  settled: boolean
  keeper: Keeper | null
}

/** Rings that an engine or a copy may still use, and sockets at which a worker may still wait. Nothing here waits. */
export class Quarantine {
  readonly #kept: Kept[] = []
  readonly #listener: QuarantineListener

  constructor(listener: QuarantineListener) {
    this.#listener = listener
  }

  get empty(): boolean {
    return this.#kept.length === 0
  }

  keep({ conversation, ...rest }: KeptRun): void {
    const keeper = conversation === null ? null : new Keeper(conversation, clockMs())
    this.#kept.push({ ...rest, keeper })
    if (keeper !== null) this.#listener.kept(keeper.address)
    const sockets = this.#kept.filter((kept) => kept.ring === null)
    for (const kept of sockets.slice(0, Math.max(0, sockets.length - SOCKETS_MAX))) {
      this.#forget(kept)
    }
  }

  /** The HTTP request of a run has returned. */
  http(run: number, answer: { readonly status: number }): void {
    for (const kept of this.#kept) if (kept.run === run) kept.keeper?.http(answer, clockMs())
  }

  /** The worker of this engine has opened the ring of a later run. */
  openedAnew(engine: string): void {
    for (const { keeper } of this.#kept) if (keeper?.engine === engine) keeper.openedAnew()
  }

  /**
   * Tells workers to leave, frees the rings that nobody uses any more.
   *
   * @param frees false: they stay
   * @throws NativeError what the device says of a ring
   */
  sweep(frees = true): void {
    for (const kept of this.#kept.slice()) {
      const nowMs = clockMs()
      kept.keeper?.poll(nowMs)
      if (kept.ring !== null && frees) this.#sweepRing(kept, kept.ring, nowMs)
      if (kept.ring === null && (kept.keeper?.done(nowMs) ?? true)) this.#forget(kept)
    }
  }

  #sweepRing(kept: Kept, ring: KeptMemory, nowMs: number): void {
    if (!kept.settled && ring.settle(SWEEP_SETTLE_MS)) {
      kept.settled = true
      this.#listener.settled(kept.run)
    }
    if (kept.read && kept.keeper !== null) kept.read = kept.keeper.mayRead(nowMs)
    if (!kept.settled || kept.read) return
    kept.ring = null
    ring.free()
    this.#listener.freed(kept.run, ring.bytes)
  }

  #forget(kept: Kept): void {
    this.#kept.splice(this.#kept.indexOf(kept), 1)
    if (kept.keeper === null) return
    kept.keeper.close()
    this.#listener.left(kept.keeper.address)
  }

  /** The process ends: whoever still reads a ring keeps its own mapping, who still waits is for the next daemon. */
  freeAll(): void {
    for (const { ring, keeper, settled } of this.#kept.splice(0)) {
      keeper?.close()
      if (ring !== null && (settled || ring.settle(SETTLE_MS))) ring.free()
    }
  }
}
