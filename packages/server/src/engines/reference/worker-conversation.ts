// Not the whole of core: a Worker that loads the schemas too takes half a second to start.
import { CkptError } from '@ckpt/core/api/errors'
import {
  type EngineMessage,
  readEngineMessage,
  type RingCounter,
} from '@ckpt/core/engine/pickle-reader'
import { pickleRuntimeError } from '@ckpt/core/engine/pickle-writer'
import type { Library } from '@ckpt/cuda'
import type { DaemonSocket } from './daemon-socket.ts'
import { strikes } from './faults.ts'
import type { Parameters, Ring } from './parameters.ts'
import { countDown } from './ring-counter.ts'
import {
  hold,
  misbehave,
  type UpdateHooks,
  type UpdateProgress,
  type UpdateTask,
} from './update-task.ts'

const SUCCESS = new Uint8Array(0)

/**
 * The worker's side of one conversation, as `update_weights_from_ipc` of checkpoint-engine's `worker.py` does it, in the dialects
 * D1 (0.1.1) to D4 (0.4.2); deviations are only the deadline, that a vanished daemon is noticed, and that an update which goes on
 * after a list has failed is not a good one. Blocks the thread.
 */
export class WorkerConversation {
  readonly progress: UpdateProgress = { phase: 'begin', tensors: 0, placed: false }
  readonly #socket: DaemonSocket
  readonly #library: Library
  readonly #parameters: Parameters
  readonly #task: UpdateTask
  readonly #hooks: UpdateHooks
  #ring: (Ring & { readonly counter: RingCounter }) | null = null
  #leftOpen = false
  /** Why a list was not loaded. */
  #failed: unknown = null

  constructor(
    socket: DaemonSocket,
    library: Library,
    parameters: Parameters,
    task: UpdateTask,
    hooks: UpdateHooks,
  ) {
    this.#socket = socket
    this.#library = library
    this.#parameters = parameters
    this.#task = task
    this.#hooks = hooks
  }

  /** Takes the update. Throws why it failed. The caller closes afterwards. */
  run(): void {
    try {
      this.#socket.connect(this.#task.address)
      this.#parameters.beginUpdate()
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
    this.#socket.close()
  }

  #open(): void {
    const body = this.#socket.receive('the IPC handle')
    try {
      const message = readEngineMessage(body)
      if (message.type !== 'handle') {
        throw new CkptError('engine_protocol', 'AssertionError: the IPC handle is not a tuple')
      }
      if (strikes(this.#task.faults, 'refuse-handle', 'open')) {
        throw new CkptError('device_error', 'injected: the IPC handle cannot be opened')
      }
      const { handle, offset, bytes, counter } = message
      const memory = this.#library.memoryOpen(this.#task.device, handle, offset + bytes)
      this.#ring = { memory, offset, bytes, counter }
    } catch (error) {
      this.#leftOpen = true
      if (this.#task.dialect === 'D1') throw error
      this.#socket.reply(this.#errorReply(error))
      this.#receiveAny()
      throw error
    }
    this.#socket.reply(SUCCESS)
  }

  /** Waits for one more message, whatever it is, as `worker.py` does before it raises. */
  #receiveAny(): void {
    try {
      this.#socket.receive('the message after a refused handle')
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
        if (this.#failed !== null) return this.#refuseEnd(this.#failed)
        if (this.#task.dialect !== 'D4') return this.#post(list)
        this.#freeRing()
        this.#socket.reply(SUCCESS)
        released = true
      } else if (message.type === 'list') {
        this.#takeList(message.tensors, list)
        list++
      } else {
        this.#raise(message)
      }
    }
  }

  /**
   * checkpoint-engine's server (0.4.2) does not look at the reply to its last list, and waits for those that follow without a
   * deadline: each is the error again.
   */
  #refuseEnd(failed: unknown): never {
    this.#freeRing()
    this.#socket.reply(this.#errorReply(failed))
    if (this.#task.dialect === 'D4') {
      this.#read('the second None')
      this.#socket.reply(this.#errorReply(failed))
    }
    const text = failed instanceof Error ? failed.message : String(failed)
    throw new CkptError(
      'engine_protocol',
      `the daemon goes on after a list that has failed: ${text}`,
    )
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
    this.progress.phase = 'lists'
    const { faults, dialect } = this.#task
    misbehave(this.#socket, this.#hooks, faults, list, `list ${list}`)
    try {
      if (strikes(faults, 'error', list)) {
        throw new CkptError('engine_failed', `injected: load_weights failed at list ${list}`)
      }
      this.#parameters.load(tensors, ring, this.#socket.signal, this.#socket.leftMs())
      this.progress.tensors += tensors.length
    } catch (error) {
      if (dialect === 'D1') {
        this.#leftOpen = true
        throw error
      }
      this.#failed = error
      return this.#socket.reply(this.#errorReply(error))
    }
    this.#socket.reply(SUCCESS)
  }

  #post(lists: number): void {
    const { faults } = this.#task
    this.progress.phase = 'hook'
    if (strikes(faults, 'hang', 'post')) this.#socket.hang('the post hook')
    if (strikes(faults, 'hold', 'post')) hold(this.#socket, this.#hooks, 'the post hook')
    if (strikes(faults, 'error', 'post')) {
      this.#leftOpen = this.#task.dialect === 'D1'
      throw new CkptError('engine_failed', 'injected: the post hook failed')
    }
    // An update without a list heals nothing.
    if (lists > 0) {
      this.#parameters.endUpdate()
      this.#hooks.torn(false)
    }
    this.#socket.reply(SUCCESS)
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
    const { memory, counter } = this.#ring
    this.#ring = null
    this.#library.memoryFree(memory)
    countDown(counter)
  }

  #read(what: string): EngineMessage {
    return readEngineMessage(this.#socket.receive(what))
  }
}
