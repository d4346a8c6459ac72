// Not the whole of core: a Worker that loads the schemas too takes half a second to start.
import type { Dialect } from '@ckpt/core'
import { CkptError } from '@ckpt/core/api/errors'
import { type EngineMessage, readEngineMessage } from '@ckpt/core/engine/pickle-reader'
import { pickleRuntimeError } from '@ckpt/core/engine/pickle-writer'
import {
  type Handle,
  type Library,
  SIGNAL_ABORT,
  type ZmqContext,
  type ZmqMonitor,
  type ZmqSocket,
  zmqPoll,
} from '@ckpt/cuda'
import { type Fault, strikes } from './faults.ts'
import type { Parameters } from './parameters.ts'

/** How often a wait looks at its deadlines. */
const POLL_MS = 100
/** Replies that a closing socket still has to deliver get this long. */
const LINGER_MS = 2000
const SUCCESS = new Uint8Array(0)

export interface WorkerTask {
  readonly address: string
  readonly dialect: Dialect
  /** Of the request. */
  readonly timeoutMs: number
  /** How long a daemon that has disconnected may take to come back. */
  readonly graceMs: number
  readonly device: number
  readonly rank: number
  readonly faults: readonly Fault[]
}

export interface WorkerHooks {
  /** The parameters are being changed, or are whole again. */
  torn(torn: boolean): void
  /** The process must exit now. */
  exit(): void
}

/**
 * The worker's side of one conversation, as `update_weights_from_ipc` of checkpoint-engine's `worker.py` does it, in the dialects
 * D1 (0.1.1) to D4 (0.4.2); deviations are only the deadline and that a vanished daemon is noticed. Blocks the thread.
 */
export class WorkerConversation {
  readonly #library: Library
  readonly #parameters: Parameters
  readonly #signal: Handle
  readonly #task: WorkerTask
  readonly #hooks: WorkerHooks
  readonly #socket: ZmqSocket
  readonly #monitor: ZmqMonitor
  readonly #endMs: number
  #goneMs: number | null = null
  #ring: { memory: Handle; bytes: number } | null = null
  #leftOpen = false

  constructor(
    context: ZmqContext,
    library: Library,
    parameters: Parameters,
    signal: Handle,
    task: WorkerTask,
    hooks: WorkerHooks,
  ) {
    this.#library = library
    this.#parameters = parameters
    this.#signal = signal
    this.#task = task
    this.#hooks = hooks
    this.#endMs = performance.now() + task.timeoutMs
    this.#socket = context.socket('REP')
    this.#socket.setOption('linger', LINGER_MS)
    this.#monitor = this.#socket.monitor()
  }

  /** Takes the update. Throws why it failed. The caller closes afterwards. */
  run(): void {
    try {
      this.#socket.connect(this.#task.address)
      this.#open()
      this.#take()
    } catch (error) {
      if (!this.#leftOpen) this.close()
      throw error
    } finally {
      this.#freeRing()
    }
    this.close()
  }

  /**
   * Closes the socket. After a failure whose exception `worker.py` raises without closing, the socket stays open until this is
   * called: the other side sees no disconnect.
   */
  close(): void {
    this.#monitor.close()
    this.#socket.close()
  }

  #open(): void {
    const body = this.#receive('the IPC handle')
    try {
      const message = readEngineMessage(body)
      if (message.type !== 'handle') {
        throw new CkptError('engine_protocol', 'AssertionError: the IPC handle is not a tuple')
      }
      if (strikes(this.#task.faults, 'refuse-handle', 'open')) {
        throw new CkptError('device_error', 'injected: the IPC handle cannot be opened')
      }
      const memory = this.#library.memoryOpen(this.#task.device, message.handle, message.bytes)
      this.#ring = { memory, bytes: message.bytes }
    } catch (error) {
      this.#leftOpen = true
      if (this.#task.dialect === 'D1') throw error
      this.#reply(this.#errorReply(error))
      this.#receiveAny()
      throw error
    }
    this.#reply(SUCCESS)
  }

  /** Waits for one more message, whatever it is, as `worker.py` does before it raises. */
  #receiveAny(): void {
    try {
      this.#receive('the message after a refused handle')
    } catch {
      // The reason that the handle was refused is the one to tell.
    }
  }

  #take(): void {
    let released = false
    for (let list = 0; ; ) {
      const message = this.#read(released ? 'the second None' : `list ${list}`)
      if (released) {
        if (message.type !== 'none') {
          throw new CkptError('engine_protocol', 'Should not receive any payload after released')
        }
        return this.#post(list)
      }
      if (message.type === 'none') {
        if (this.#task.dialect !== 'D4') return this.#post(list)
        this.#freeRing()
        this.#reply(SUCCESS)
        released = true
      } else if (message.type === 'list') {
        this.#takeList(message.tensors, list)
        list++
      } else {
        this.#raise(message)
      }
    }
  }

  /** X of the protocol, or something that does not belong here. D1 fails an assertion that the payload is a list. */
  #raise(message: EngineMessage): never {
    this.#leftOpen = this.#task.dialect === 'D1'
    if (message.type === 'error' && this.#task.dialect !== 'D1') {
      throw new CkptError('aborted', `RuntimeError: ${message.text}`)
    }
    const text = message.type === 'error' ? ` (the payload is an exception: ${message.text})` : ''
    throw new CkptError('engine_protocol', `AssertionError: not a list${text}`)
  }

  #takeList(tensors: Extract<EngineMessage, { type: 'list' }>['tensors'], list: number): void {
    const ring = this.#ring
    if (ring === null) throw new Error('a list without a ring')
    if (list === 0) this.#hooks.torn(true)
    const { faults, dialect } = this.#task
    if (strikes(faults, 'hang', list)) this.#hang(`list ${list}`)
    if (strikes(faults, 'exit', list)) {
      this.#hooks.exit()
      this.#hang(`list ${list}`)
    }
    if (strikes(faults, 'close', list)) {
      throw new CkptError('engine_failed', `injected: the socket closes at list ${list}`)
    }
    try {
      if (strikes(faults, 'error', list)) {
        throw new CkptError('engine_failed', `injected: load_weights failed at list ${list}`)
      }
      this.#parameters.load(tensors, ring, this.#signal, this.#leftMs())
    } catch (error) {
      if (dialect === 'D1') {
        this.#leftOpen = true
        throw error
      }
      return this.#reply(this.#errorReply(error))
    }
    this.#reply(SUCCESS)
  }

  #post(lists: number): void {
    const { faults } = this.#task
    if (strikes(faults, 'hang', 'post')) this.#hang('the post hook')
    if (strikes(faults, 'error', 'post')) {
      this.#leftOpen = this.#task.dialect === 'D1'
      throw new CkptError('engine_failed', 'injected: the post hook failed')
    }
    // An update without a list heals nothing.
    if (lists > 0) this.#hooks.torn(false)
    this.#reply(SUCCESS)
  }

  /** What `worker.py` sends for an exception: D2 a pickle of it, D3 and D4 the traceback as text. */
  #errorReply(error: unknown): Uint8Array {
    const text = error instanceof Error ? error.message : String(error)
    if (this.#task.dialect === 'D2') return pickleRuntimeError(text)
    const traceback = `Traceback (most recent call last):\n  in rank ${this.#task.rank}\n`
    return new TextEncoder().encode(`${traceback}RuntimeError: ${text}\n`)
  }

  #freeRing(): void {
    if (this.#ring === null) return
    this.#library.memoryFree(this.#ring.memory)
    this.#ring = null
  }

  #reply(body: Uint8Array): void {
    // A REP drops a reply whose peer has gone; it never has to wait.
    this.#socket.send([body])
  }

  #read(what: string): EngineMessage {
    return readEngineMessage(this.#receive(what))
  }

  /** The next message; throws at the deadline, at an abort and when the daemon stays away. */
  #receive(what: string): Uint8Array {
    const fd = this.#library.signalFd(this.#signal)
    for (;;) {
      zmqPoll([this.#socket, this.#monitor, { fd }], Math.min(POLL_MS, this.#leftMs()))
      const frames = this.#socket.recv()
      if (frames !== null) return joined(frames)
      this.#watch()
      this.#check(what)
    }
  }

  /** Never comes back, as a worker that hangs inside its own code. */
  #hang(what: string): never {
    const fd = this.#library.signalFd(this.#signal)
    for (;;) {
      zmqPoll([{ fd }], Math.min(POLL_MS, this.#leftMs()))
      this.#check(what)
    }
  }

  #watch(): void {
    for (let event = this.#monitor.next(); event !== null; event = this.#monitor.next()) {
      if (event.event === 'connected') this.#goneMs = null
      if (event.event === 'disconnected') this.#goneMs ??= performance.now()
    }
  }

  #check(what: string): void {
    const nowMs = performance.now()
    if ((this.#library.signalTake(this.#signal) & SIGNAL_ABORT) !== 0) {
      throw new CkptError('shutting_down', `the engine shuts down while waiting for ${what}`)
    }
    if (nowMs >= this.#endMs) {
      throw new CkptError('engine_timeout', `timed out waiting for ${what}`)
    }
    if (this.#goneMs !== null && nowMs - this.#goneMs >= this.#task.graceMs) {
      throw new CkptError('engine_disconnected', `the daemon is gone while waiting for ${what}`)
    }
  }

  #leftMs(): number {
    return Math.max(0, Math.ceil(this.#endMs - performance.now()))
  }
}

function joined(frames: readonly Uint8Array[]): Uint8Array {
  if (frames.length !== 1) throw new CkptError('engine_protocol', `${frames.length} frames, not 1`)
  return frames[0] as Uint8Array
}
