import { rmSync } from 'node:fs'
import type { PollItem, ZmqContext, ZmqMonitor, ZmqSocket } from '@ckpt/cuda'

const DELIMITER = new Uint8Array(0)
/** Long enough for the abort message to reach a worker that nobody waits for. */
const LINGER_MS = 500
/** A peer that has just connected may take a message only after libzmq has looked at its mailbox. */
const RETRY_MS = 1
const RETRY_SLOW_MS = 20
const FAST_RETRIES = 50

/**
 * Our end of the conversation with one engine worker: a bound DEALER that writes and takes off the empty delimiter of the
 * worker's REP. Nothing blocks.
 */
export class EngineSocket {
  readonly address: string
  readonly #socket: ZmqSocket
  readonly #monitor: ZmqMonitor
  readonly #outbox: Uint8Array[] = []
  #retries = 0

  /** Binds `address`. libzmq removes a socket file that a dead process left there. */
  constructor(context: ZmqContext, address: string) {
    this.address = address
    this.#socket = context.socket('DEALER')
    let monitor: ZmqMonitor | null = null
    try {
      this.#socket.setOption('linger', LINGER_MS)
      monitor = this.#socket.monitor()
      this.#monitor = monitor
      this.#socket.bind(address)
    } catch (error) {
      monitor?.close()
      this.#socket.close()
      throw error
    }
  }

  get pollItems(): PollItem[] {
    return [this.#socket, this.#monitor]
  }

  /** Milliseconds until {@link flush} wants to be called again; null: nothing is waiting. */
  get retryMs(): number | null {
    if (this.#outbox.length === 0) return null
    return this.#retries < FAST_RETRIES ? RETRY_MS : RETRY_SLOW_MS
  }

  send(body: Uint8Array): void {
    this.#outbox.push(body)
    this.#retries = 0
    this.flush()
  }

  /** Sends what no peer could take before. */
  flush(): void {
    while (this.#outbox.length > 0) {
      if (!this.#socket.send([DELIMITER, this.#outbox[0] as Uint8Array])) {
        this.#retries++
        return
      }
      this.#outbox.shift()
    }
  }

  /** Body of the next reply, or null. */
  receive(): Uint8Array | null {
    const frames = this.#socket.recv()
    return frames === null ? null : (frames.at(-1) ?? DELIMITER)
  }

  /** The next change of the connection, or null. */
  nextLink(): 'connected' | 'disconnected' | null {
    for (;;) {
      const event = this.#monitor.next()
      if (event === null) return null
      if (event.event !== 'connected' && event.event !== 'disconnected') continue
      // what waits was meant for the worker that has gone
      if (event.event === 'disconnected') this.#outbox.length = 0
      return event.event
    }
  }

  /** What is still on its way is delivered in the background, for half a second at most. */
  close(): void {
    this.#monitor.close()
    this.#socket.close()
    // libzmq leaves the file of a socket that it has bound
    rmSync(this.address.replace(/^ipc:\/\//, ''), { force: true })
  }
}
