// Requests are checked by hand: a Worker that loads the schemas takes half a second to start.
import { CkptError } from '@ckpt/core/api/errors'
import { packFrame, unpackFrame } from '@ckpt/core/placement/frame'
import type { DaemonSocket } from './daemon-socket.ts'
import { strikes } from './faults.ts'
import type { Parameters } from './parameters.ts'
import { generationOf, placementOf } from './placement.ts'
import { misbehave, type UpdateHooks, type UpdateProgress, type UpdateTask } from './update-task.ts'

/** A reply is on its way when the process exits after it: libzmq's thread gets this long to send it. */
const EXIT_AFTER_REPLY_MS = 200

/** What the daemon says, see `direct-messages.ts` of core. */
type DirectRequest =
  | { readonly type: 'look'; readonly map: string | null }
  | { readonly type: 'begin'; readonly generation: string }
  | { readonly type: 'end' }
  | { readonly type: 'leave'; readonly reason: string; readonly untouched: boolean }

/**
 * The worker's side of one direct update, as `ckpt_worker/direct.py` does it: the daemon copies into this rank's parameters
 * between `begin` and `end`, and nothing here reads or moves them meanwhile. Blocks the thread.
 */
export class DirectWorker {
  readonly progress: UpdateProgress = { phase: 'begin', tensors: 0, placed: false }
  readonly #socket: DaemonSocket
  readonly #parameters: Parameters
  readonly #task: UpdateTask
  readonly #hooks: UpdateHooks
  #begun = false
  /** The fault `moved@open` has struck. */
  #moved = false

  constructor(socket: DaemonSocket, parameters: Parameters, task: UpdateTask, hooks: UpdateHooks) {
    this.#socket = socket
    this.#parameters = parameters
    this.#task = task
    this.#hooks = hooks
  }

  /** Until the daemon has copied all, or leaves without having changed anything. Throws why it failed. */
  run(): void {
    try {
      this.#socket.connect(this.#task.address)
      while (!this.#answer(this.#read())) continue
    } finally {
      this.close()
    }
  }

  close(): void {
    this.#socket.close()
  }

  #read(): DirectRequest {
    return readRequest(this.#socket.receive(this.#begun ? 'the end of its copies' : 'what to do'))
  }

  /** Whether that was the last. */
  #answer(request: DirectRequest): boolean {
    const { type } = request
    if (type === 'leave') this.#leave(request.reason, request.untouched)
    else if (type === 'end' && this.#begun) this.#end()
    else if (type === 'look' && !this.#begun) this.#look(request.map)
    else if (type === 'begin' && !this.#begun) this.#begin(request.generation)
    else throw wrong(`it says ${type} ${this.#begun ? 'after' : 'before'} it has begun`)
    return type === 'leave' || type === 'end'
  }

  #look(knownMap: string | null): void {
    const placement = placementOf(this.#parameters)
    if ('refused' in placement) return this.#refuse(placement.refused)
    const { handles, map, digest } = placement
    const head = { ok: true, generation: generationOf(this.#parameters), handles, map: digest }
    this.#socket.reply(packFrame(head, digest === knownMap ? undefined : map))
    if (this.#moved || !strikes(this.#task.faults, 'moved', 'open')) return
    this.#moved = true
    this.#parameters.move(this.#socket.signal, this.#socket.leftMs())
  }

  #begin(generation: string): void {
    const { faults } = this.#task
    misbehave(this.#socket, this.#hooks, faults, 0, 'begin')
    if (strikes(faults, 'error', 0)) return this.#refuse('injected: it does not begin')
    if (generation !== generationOf(this.#parameters)) {
      return this.#refuse("the engine's memory has changed")
    }
    this.#begun = true
    this.progress.phase = 'copies'
    this.#hooks.torn(true)
    this.#grant()
    if (strikes(faults, 'exit', 1)) Bun.sleepSync(EXIT_AFTER_REPLY_MS)
    misbehave(this.#socket, this.#hooks, faults, 1, 'the copies')
  }

  #end(): void {
    const { faults } = this.#task
    this.progress.phase = 'hook'
    if (strikes(faults, 'hang', 'post')) this.#socket.hang('the post hook')
    if (strikes(faults, 'error', 'post')) {
      const reason = 'injected: the post hook failed'
      this.#refuse(reason)
      throw new CkptError('engine_failed', reason)
    }
    this.progress.placed = true
    this.#hooks.torn(false)
    this.#grant()
  }

  #leave(reason: string, untouched: boolean): void {
    if (!this.#begun) return
    if (!untouched) throw new CkptError('aborted', reason)
    this.#hooks.torn(this.#task.torn)
    // whether it is whole, which one that was torn before is not
    if (this.#task.torn) this.#refuse('an update before has failed half way')
    else this.#grant()
  }

  #grant(): void {
    this.#socket.reply(packFrame({ ok: true }))
  }

  #refuse(reason: string): void {
    this.#socket.reply(packFrame({ ok: false, reason }))
  }
}

function readRequest(frame: Uint8Array): DirectRequest {
  const head = unpackFrame(frame)?.head
  if (typeof head !== 'object' || head === null) throw wrong('the frame cannot be read')
  const { type, map, generation, reason, untouched } = head as Record<string, unknown>
  if (type === 'end') return { type }
  if (type === 'look' && (map === null || typeof map === 'string')) return { type, map }
  if (type === 'begin' && typeof generation === 'string') return { type, generation }
  if (type === 'leave' && typeof reason === 'string' && typeof untouched === 'boolean') {
    return { type, reason, untouched }
  }
  throw wrong(`it is no request: ${JSON.stringify(head).slice(0, 200)}`)
}

function wrong(what: string): CkptError {
  return new CkptError('engine_protocol', `what the daemon sends cannot be used: ${what}`)
}
