import type { Handle, Library } from '@ckpt/cuda'
import type { EngineMemory } from './engine-memory.ts'
import { BusyIntervals } from './intervals.ts'

/** What is called of the native library. */
export type InFlightCalls = Pick<Library, 'eventRecord' | 'eventNotify' | 'eventQuery'>

interface Work {
  /** Those that are not complete. */
  readonly events: Handle[]
  readonly done: () => void
}

/** What is on its way into an engine's memory, in the order in which it completes. Nothing here waits. */
export class InFlight {
  readonly busy = new BusyIntervals()
  readonly #library: InFlightCalls
  readonly #signal: Handle
  readonly #memory: EngineMemory
  readonly #countMax: number
  readonly #works: Work[] = []

  /** @param signal is woken when one is complete */
  constructor(library: InFlightCalls, signal: Handle, memory: EngineMemory, countMax: number) {
    this.#library = library
    this.#signal = signal
    this.#memory = memory
    this.#countMax = countMax
  }

  get hasRoom(): boolean {
    return this.#works.length < this.#countMax
  }

  /**
   * What was enqueued on these streams.
   *
   * @param done is called when it is complete, in {@link InFlight.takeComplete}
   */
  add(streams: readonly Handle[], nowMs: number, done: () => void): void {
    this.#works.push({ events: streams.map((one) => this.#record(one)), done })
    this.busy.begin(nowMs)
  }

  #record(stream: Handle): Handle {
    const event = this.#memory.event()
    this.#library.eventRecord(event, stream)
    this.#library.eventNotify(event, this.#signal)
    return event
  }

  /** @throws NativeError what failed in a copy */
  takeComplete(nowMs: number): void {
    for (let work = this.#works[0]; work !== undefined; work = this.#works[0]) {
      for (let event = work.events[0]; event !== undefined; event = work.events[0]) {
        if (!this.#library.eventQuery(event)) return
        work.events.shift()
        this.#memory.reuse(event)
      }
      this.#works.shift()
      this.busy.end(nowMs)
      work.done()
    }
  }
}
