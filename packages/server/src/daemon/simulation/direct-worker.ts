import { packFrame, unpackFrame } from '@ckpt/core'
import type { WorkerPlace } from './engine-worker.ts'
import type { Parameters } from './parameters.ts'
import type { Life } from './time.ts'
import type { Wire, WorkerEnd } from './wires.ts'

/** What a worker does wrong in a direct update, and when: at a message of the daemon, or while it copies. */
export interface DirectFault {
  /**
   * `refuse`: it says no and goes on. `error`: it raises, and says so where it can. `hang`: it never comes back. `close`: its
   * process dies. `move`: its weights lie elsewhere than before.
   */
  readonly kind: 'refuse' | 'error' | 'hang' | 'close' | 'move'
  readonly step: 'look' | 'begin' | 'copies' | 'end' | 'leave'
}

export interface DirectScript {
  /** Milliseconds that it takes to look and to begin, and its processing after the copies. */
  readonly runMs: number
  readonly postMs: number
  readonly direct?: DirectFault | undefined
}

/** What the daemon says, see `direct-messages.ts` of core. */
interface Request {
  readonly type: string
  readonly map?: unknown
  readonly generation?: unknown
  readonly reason?: unknown
  readonly untouched?: unknown
}

const LOOK_MS = 200
const GRACE_MS = 2000

export const DIED = 'the process died'

/** One worker of an engine in one direct update, as `ckpt_worker/direct.py` does it. */
export class DirectWorker implements WorkerEnd {
  over = false
  readonly #place: WorkerPlace
  readonly #address: string
  readonly #script: DirectScript
  readonly #life: Life
  readonly #parametersNow: () => Parameters
  readonly #left: (error: string | null) => void
  readonly #then: (() => void)[] = []
  #wire: Wire | null = null
  #begun = false
  #hangs = false
  #freeMs = 0

  constructor(
    place: WorkerPlace,
    address: string,
    script: DirectScript,
    parameters: () => Parameters,
    life: Life,
    left: (error: string | null) => void,
  ) {
    this.#place = place
    this.#address = address
    this.#script = script
    this.#parametersNow = parameters
    this.#life = life
    this.#left = left
  }

  /** Of its process, which may be another one by the time that it is this worker's turn. */
  get #parameters(): Parameters {
    return this.#parametersNow()
  }

  connect(): void {
    this.#wire = this.#place.wires.connect(this.#address, this, this.#life)
    this.#watch(0)
  }

  /** It does not wait for ever for a daemon that is gone. */
  #watch(goneMs: number): void {
    const look = () => {
      if (this.over || this.#hangs) return
      if (goneMs >= GRACE_MS) return this.#raise('DaemonGone: it did not come back')
      this.#watch(this.#wire?.isLost ? goneMs + LOOK_MS : 0)
    }
    this.#place.time.after(LOOK_MS, look, this.#life)
  }

  whenOver(then: () => void): void {
    if (this.over) then()
    else this.#then.push(then)
  }

  take(body: Uint8Array): void {
    const request = (unpackFrame(body)?.head ?? { type: 'none' }) as Request
    const { runMs, postMs } = this.#script
    this.#later(request.type === 'end' ? postMs : runMs, () => this.#answer(request))
  }

  /** It does one thing after another. */
  #later(ms: number, act: () => void): void {
    const { time, random } = this.#place
    this.#freeMs = Math.max(time.nowMs, this.#freeMs) + ms * random.between(0.2, 1.8)
    const run = () => {
      if (!this.over && !this.#hangs) act()
    }
    time.at(this.#freeMs, run, this.#life)
  }

  #answer(request: Request): void {
    const { type } = request
    this.#place.witness.trace(() => `the worker at ${this.#address} is told to ${type}`)
    if (type === 'leave') this.#leave(String(request.reason), request.untouched === true)
    else if (type === 'look' && !this.#begun) this.#look(request.map)
    else if (type === 'begin' && !this.#begun) this.#begin(request.generation)
    else if (type === 'end' && this.#begun) this.#end()
    else this.#raise(`ProtocolError: ${type} ${this.#begun ? 'after' : 'before'} it has begun`)
  }

  #look(known: unknown): void {
    if (this.#misbehaves('look')) return
    this.#parameters.look()
    const { notPlaced } = this.#parameters
    if (notPlaced !== null) return this.#refuse(notPlaced)
    const { head, map } = this.#parameters.placement(known)
    this.#wire?.reply(packFrame(head, map))
  }

  #begin(generation: unknown): void {
    if (this.#script.direct?.kind === 'move') this.#misbehaves('begin')
    if (generation !== this.#parameters.generation) {
      return this.#refuse("the engine's memory has changed")
    }
    if (this.#misbehaves('begin')) return
    this.#begun = true
    this.#parameters.holdStill()
    this.#grant()
    const { direct, postMs } = this.#script
    if (direct?.step === 'copies') this.#later(postMs, () => void this.#misbehaves('copies'))
  }

  #end(): void {
    if (this.#misbehaves('end')) return
    this.#parameters.serve()
    this.#grant()
    this.#leaves(null)
  }

  #leave(reason: string, untouched: boolean): void {
    if (this.#misbehaves('leave')) return
    if (!this.#begun) return this.#leaves(null)
    if (!untouched) return this.#raise(`DaemonError: ${reason}`)
    if (this.#parameters.goOn()) this.#grant()
    else this.#refuse('an update before has failed half way')
    this.#begun = false
    this.#leaves(null)
  }

  /** Whether it does something else than it was told to. After a move it does that. */
  #misbehaves(step: DirectFault['step']): boolean {
    const { direct } = this.#script
    if (direct?.step !== step) return false
    this.#place.witness.trace(() => `the worker at ${this.#address}: ${direct.kind} at ${step}`)
    switch (direct.kind) {
      case 'hang':
        this.#hangs = true
        return true
      case 'close':
        this.#leaves(DIED)
        return true
      case 'refuse':
        // it has no way to say so while the daemon copies
        if (step !== 'look' && step !== 'begin') return false
        this.#refuse('injected: no')
        return true
      case 'error':
        this.#fail(step)
        return true
      case 'move':
        // while a daemon copies it cannot
        if (step === 'look' || step === 'begin') this.#parameters.move()
        return false
    }
  }

  #fail(step: DirectFault['step']): void {
    const reason = `RuntimeError: injected at ${step}`
    // constants may have been written
    if (step === 'begin') {
      this.#parameters.holdStill()
      this.#begun = true
    }
    if (step !== 'copies') this.#refuse(reason, this.#begun)
    this.#raise(reason)
  }

  #grant(): void {
    this.#wire?.reply(packFrame({ ok: true }))
  }

  #refuse(reason: string, torn = false): void {
    this.#wire?.reply(packFrame({ ok: false, reason, ...(torn ? { torn } : {}) }))
  }

  #raise(error: string): void {
    if (this.#begun) this.#parameters.tear()
    this.#leaves(error)
  }

  #leaves(error: string | null): void {
    this.#wire?.close()
    this.#finish()
    this.#left(error)
  }

  #finish(): void {
    this.over = true
    for (const then of this.#then.splice(0)) then()
  }

  /** Its process ends. */
  die(): void {
    this.#wire?.close()
    this.#finish()
  }
}
