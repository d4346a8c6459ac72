import { CkptError } from '@ckpt/core/api/errors'
import {
  type Handle,
  type Library,
  SIGNAL_ABORT,
  SIGNAL_USER,
  type ZmqContext,
  type ZmqMonitor,
  type ZmqSocket,
  zmqPoll,
} from '@ckpt/cuda'

/** How often a wait looks at its deadlines. */
const POLL_MS = 100
/** Replies that a closing socket still has to deliver get this long. */
const LINGER_MS = 2000

export interface SocketLimits {
  /** Of the request. */
  readonly timeoutMs: number
  /** How long a daemon that has disconnected may take to come back. */
  readonly graceMs: number
}

/**
 * A rank's socket to the daemon for one update: a request comes, a reply goes. Every wait ends at the deadline of the update, at
 * an abort, and when the daemon stays away. Blocks the thread.
 */
export class DaemonSocket {
  /** Its abort bit ends every wait, its user bit one that {@link DaemonSocket.hold} makes. */
  readonly signal: Handle
  readonly #library: Library
  readonly #socket: ZmqSocket
  readonly #monitor: ZmqMonitor
  readonly #graceMs: number
  readonly #endMs: number
  #goneMs: number | null = null

  constructor(context: ZmqContext, library: Library, signal: Handle, limits: SocketLimits) {
    this.signal = signal
    this.#library = library
    this.#graceMs = limits.graceMs
    this.#endMs = performance.now() + limits.timeoutMs
    this.#socket = context.socket('REP')
    this.#socket.setOption('linger', LINGER_MS)
    this.#monitor = this.#socket.monitor()
  }

  connect(address: string): void {
    this.#socket.connect(address)
  }

  /** The next message; throws at the deadline, at an abort and when the daemon stays away. */
  receive(what: string): Uint8Array {
    const fd = this.#library.signalFd(this.signal)
    for (;;) {
      zmqPoll([this.#socket, this.#monitor, { fd }], Math.min(POLL_MS, this.leftMs()))
      const frames = this.#socket.recv()
      if (frames !== null) return joined(frames)
      this.#watch()
      this.#check(what)
    }
  }

  reply(body: Uint8Array): void {
    // A REP drops a reply whose peer has gone; it never has to wait.
    this.#socket.send([body])
  }

  /** Never comes back, as a worker that hangs inside its own code. */
  hang(what: string): never {
    const fd = this.#library.signalFd(this.signal)
    for (;;) {
      zmqPoll([{ fd }], Math.min(POLL_MS, this.leftMs()))
      this.#check(what)
    }
  }

  /** Comes back when the signal's user bit is set. */
  hold(what: string): void {
    const fd = this.#library.signalFd(this.signal)
    while ((this.#library.signalTake(this.signal) & SIGNAL_USER) === 0) {
      this.#check(what)
      zmqPoll([{ fd }], Math.min(POLL_MS, this.leftMs()))
    }
    // the next one waits for another
    this.#library.signalReset(this.signal)
  }

  /** Until the deadline. */
  leftMs(): number {
    return Math.max(0, Math.ceil(this.#endMs - performance.now()))
  }

  close(): void {
    this.#monitor.close()
    this.#socket.close()
  }

  #watch(): void {
    for (let event = this.#monitor.next(); event !== null; event = this.#monitor.next()) {
      if (event.event === 'connected') this.#goneMs = null
      if (event.event === 'disconnected') this.#goneMs ??= performance.now()
    }
  }

  #check(what: string): void {
    const nowMs = performance.now()
    if ((this.#library.signalTake(this.signal) & SIGNAL_ABORT) !== 0) {
      throw new CkptError('shutting_down', `the engine shuts down while waiting for ${what}`)
    }
    if (nowMs >= this.#endMs) {
      throw new CkptError('engine_timeout', `timed out waiting for ${what}`)
    }
    if (this.#goneMs !== null && nowMs - this.#goneMs >= this.#graceMs) {
      throw new CkptError('engine_disconnected', `the daemon is gone while waiting for ${what}`)
    }
  }
}

function joined(frames: readonly Uint8Array[]): Uint8Array {
  if (frames.length !== 1) throw new CkptError('engine_protocol', `${frames.length} frames, not 1`)
  return frames[0] as Uint8Array
}
