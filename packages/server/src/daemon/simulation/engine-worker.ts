import { readEngineMessage } from '@ckpt/core'
import {
  type Script,
  ScriptedWorker,
  type WorkerAct,
} from '@ckpt/core/engine/testing/scripted-worker'
import type { ExpectedTensor } from './checkpoint.ts'
import type { Parameters } from './parameters.ts'
import type { Random } from './random.ts'
import type { SharedDevices } from './shared-devices.ts'
import type { TracedMemory } from './traced-memory.ts'
import type { Life, SimulatedTime } from './time.ts'
import type { Witness } from './violation.ts'
import type { Wire, WorkerEnd, Wires } from './wires.ts'

/** What all workers of a simulation have. */
export interface WorkerPlace {
  readonly time: SimulatedTime
  readonly random: Random
  readonly wires: Wires
  readonly witness: Witness
  readonly devices: SharedDevices
  /** Null: it was freed, or never was. */
  ringOf(handle: Uint8Array): TracedMemory | null
  /** What the update that runs must bring. */
  expected(): ReadonlyMap<string, ExpectedTensor>
}

type Listed = Extract<ReturnType<typeof readEngineMessage>, { type: 'list' }>['tensors']

/** One worker of an engine in one update. It looks at every byte that it is told of. */
export class EngineWorker implements WorkerEnd {
  /** Names of the tensors whose lists it has taken, as often as it was told. */
  readonly taken: string[] = []
  lists = 0
  over = false
  /** It has taken everything and has left in good order. */
  whole = false
  readonly #place: WorkerPlace
  readonly #address: string
  readonly #scripted: ScriptedWorker
  readonly #life: Life
  readonly #left: (error: string | null) => void
  readonly #parametersNow: () => Parameters | null
  #changed = false
  readonly #then: (() => void)[] = []
  #wire: Wire | null = null
  #ring: TracedMemory | null = null
  #freeMs = 0

  constructor(
    place: WorkerPlace,
    address: string,
    script: Script,
    life: Life,
    left: (error: string | null) => void,
    parameters: () => Parameters | null,
  ) {
    this.#parametersNow = parameters
    this.#place = place
    this.#address = address
    this.#scripted = new ScriptedWorker(script)
    this.#life = life
    this.#left = left
  }

  /** Null: where they lie is nobody's business. */
  get #parameters(): Parameters | null {
    return this.#parametersNow()
  }

  connect(): void {
    this.#wire = this.#place.wires.connect(this.#address, this, this.#life)
  }

  whenOver(then: () => void): void {
    if (this.over) then()
    else this.#then.push(then)
  }

  take(body: Uint8Array): void {
    const message = readEngineMessage(body)
    if (message.type === 'handle') this.#map(message.handle)
    const listed = message.type === 'list' ? message.tensors : null
    // between two messages it has the ring mapped, and leaves it alone
    if (message.type === 'handle' || listed !== null) this.#ring?.readers.add(this)
    if (listed !== null) {
      this.lists++
      this.#look(listed, 'is told of')
      this.#change()
    }
    const { time, random } = this.#place
    let startMs = Math.max(time.nowMs, this.#freeMs)
    for (const act of this.#scripted.take(body)) {
      const atMs = startMs + act.afterMs * random.between(0.2, 1.8)
      this.#freeMs = Math.max(this.#freeMs, atMs)
      time.at(atMs, () => this.#act(act, listed), this.#life)
      startMs = atMs
    }
  }

  #change(): void {
    if (!this.#changed) this.#parameters?.load(this.#place.expected())
    this.#changed = true
  }

  #map(handle: Uint8Array): void {
    const ring = this.#place.ringOf(handle)
    if (ring === null) return this.#place.witness.violated('a worker was given a ring that is gone')
    this.#ring = ring
  }

  #look(listed: Listed, does: string): void {
    const expected = this.#place.expected()
    for (const { name, offset, shape } of listed) {
      const one = expected.get(name)
      if (one === undefined) return this.#place.witness.violated(`nobody asked for ${name}`)
      const right = shape.length === 1 && shape[0] === one.bytes
      if (right && this.#ring?.holds(offset, one.bytes, one.buffer, one.offset)) continue
      const words = `a worker ${does} ${name}, which does not lie in its ring`
      return this.#place.witness.violated(words)
    }
  }

  #act(act: WorkerAct, listed: Listed | null): void {
    this.#place.witness.trace(() => `${act.type} of the worker at ${this.#address}`)
    switch (act.type) {
      case 'reply':
        if (listed !== null && act.body.length === 0) {
          this.#look(listed, 'has taken')
          for (const { name } of listed) this.#take(name)
        }
        this.#ring?.readers.delete(this)
        return this.#wire?.reply(act.body)
      case 'disconnected':
        return this.#wire?.close()
      case 'left':
        this.#leave(act.error)
        this.#end()
        return this.#left(act.error)
    }
  }

  #end(): void {
    this.over = true
    this.#ring?.readers.delete(this)
    for (const then of this.#then.splice(0)) then()
  }

  #take(name: string): void {
    this.taken.push(name)
    const one = this.#place.expected().get(name)
    if (one !== undefined) this.#parameters?.take(name, one)
  }

  #leave(error: string | null): void {
    this.whole = error === null
    if (error === null) {
      // one without bytes has no list
      this.#change()
      this.#parameters?.serve()
    } else if (this.#changed) this.#parameters?.tear()
  }

  /** Its process ends. */
  die(): void {
    this.#wire?.close()
    this.#end()
  }
}
