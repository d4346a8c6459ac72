import { ABORT_TEXT, type Dialect, endsReading, pickleRuntimeError } from '@ckpt/core'
import type { EngineSocket } from './engine-socket.ts'

/** A worker whose request has returned and which has not connected, or has not left, by then never will. */
export const STAY_MS = 60_000
/** A worker drops its mapping of the ring just after it has closed its socket. */
const UNMAP_MS = 1000
/** One takes the place of the handle, to which a worker replies; the next one makes it raise. */
const TOLD_MAX = 2

/** How a conversation stood when its run ended. */
export interface LeftConversation {
  readonly socket: EngineSocket
  /** Whose worker it is; null: nobody's that we know. */
  readonly engine: string | null
  readonly dialect: Dialect | null
  /** Whether an HTTP request started the worker. */
  readonly http: boolean
  /** What that request has returned; null: nothing yet. */
  readonly answer: { readonly status: number } | null
  readonly everConnected: boolean
  readonly connected: boolean
  /** The worker that is connected owes a reply to something that it reads the ring for. */
  readonly owes: boolean
}

/**
 * Keeps the socket of a run that ended before its worker left: whoever connects is told to raise, since a stock worker waits
 * for ever, and what it does tells when its ring may go. Nothing here blocks.
 */
export class Keeper {
  readonly engine: string | null
  readonly #left: LeftConversation
  readonly #abort = pickleRuntimeError(ABORT_TEXT)
  #answer: { readonly status: number } | null
  #connected: boolean
  #everConnected: boolean
  #owes: boolean
  /** How often the present worker was told. */
  #told = 0
  /** When the last thing that may be waited for returned. */
  #returnedMs: number | null
  #disconnectedMs: number | null

  constructor(left: LeftConversation, nowMs: number) {
    this.#left = left
    this.engine = left.engine
    this.#answer = left.answer
    this.#connected = left.connected
    this.#everConnected = left.everConnected
    this.#owes = left.owes
    this.#returnedMs = left.answer !== null || !left.http ? nowMs : null
    this.#disconnectedMs = left.everConnected && !left.connected ? nowMs : null
    // once more: the run may have failed in telling it
    if (this.#connected) this.#tell()
  }

  /** The HTTP request has returned. */
  http(answer: { readonly status: number }, nowMs: number): void {
    if (!this.#left.http || this.#answer !== null) return
    this.#answer = answer
    this.#returnedMs = nowMs
  }

  /**
   * The same engine's worker has opened the ring of a later update. One that is known to close its connection is believed only
   * that; of the others (D1, or not known yet) this is the only sign that they have left the earlier one.
   */
  openedAnew(): void {
    const { dialect } = this.#left
    if (dialect !== 'D2' && dialect !== 'D4') this.#owes = false
  }

  get address(): string {
    return this.#left.socket.address
  }

  poll(nowMs: number): void {
    try {
      this.#poll(nowMs)
    } catch {
      // what a stranger sends here fails nobody
    }
  }

  #poll(nowMs: number): void {
    const { socket } = this.#left
    socket.flush()
    for (let link = socket.nextLink(); link !== null; link = socket.nextLink()) {
      if (link === 'connected') this.#onConnected()
      else this.#onDisconnected(nowMs)
    }
    for (let body = socket.receive(); body !== null; body = socket.receive()) {
      this.#owes = false
      this.#tell()
    }
  }

  #onConnected(): void {
    if (this.#connected) return
    this.#connected = true
    this.#everConnected = true
    // it gets no handle
    this.#owes = false
    this.#told = 0
    this.#tell()
  }

  #onDisconnected(nowMs: number): void {
    this.#connected = false
    this.#owes = false
    this.#disconnectedMs = nowMs
  }

  #tell(): void {
    if (this.#told >= TOLD_MAX) return
    this.#told++
    this.#left.socket.send(this.#abort)
  }

  /** Whether a worker that had been given the handle may still read the ring. */
  mayRead(nowMs: number): boolean {
    if (this.#left.http) {
      if (this.#answer === null) return true
      return this.#owes && !endsReading(this.#answer, this.#left.dialect)
    }
    return this.#disconnectedMs === null || nowMs < this.#disconnectedMs + UNMAP_MS
  }

  /** Whether nobody is left who could want a word. */
  done(nowMs: number): boolean {
    if (this.#returnedMs === null) return false
    if (this.#everConnected && !this.#connected) return true
    return nowMs >= this.#returnedMs + STAY_MS
  }

  close(): void {
    this.#left.socket.close()
  }
}
