import type { H2dPiece, Handle, Library } from '@ckpt/cuda'
import type { EngineMemory } from './engine-memory.ts'
import { BusyIntervals } from './intervals.ts'

/**
 * Groups of copies on their way at a time: few enough to stop soon, 7 ms, enough for the device not to wait while an allocation is
 * opened, which takes up to 5 ms.
 */
const IN_FLIGHT_MAX = 6

/** What is called of the native library. */
export type QueueCalls = Pick<
  Library,
  'copyH2dBatch' | 'eventRecord' | 'eventNotify' | 'eventQuery'
>

interface Group {
  /** Those that are not complete. */
  readonly events: Handle[]
  readonly done: () => void
}

/** Groups of copies into an engine's memory, in the order in which they complete. Nothing here waits. */
export class CopyQueue {
  readonly h2d = new BusyIntervals()
  readonly #library: QueueCalls
  readonly #signal: Handle
  readonly #memory: EngineMemory
  readonly #inFlight: Group[] = []

  /** @param signal is woken when a group is complete */
  constructor(library: QueueCalls, signal: Handle, memory: EngineMemory) {
    this.#library = library
    this.#signal = signal
    this.#memory = memory
  }

  get hasRoom(): boolean {
    return this.#inFlight.length < IN_FLIGHT_MAX
  }

  /**
   * The device goes from one to the next without a pause. Rows have a stream of their own: narrow ones do not fill the wire, other
   * copies beside them do.
   *
   * @param done is called when they are complete, in {@link CopyQueue.takeComplete}
   */
  add(pieces: readonly H2dPiece[], nowMs: number, done: () => void): void {
    const { stream, rowsStream } = this.#memory
    const batches = [
      { on: stream, pieces: pieces.filter(({ height }) => height === 1) },
      { on: rowsStream, pieces: pieces.filter(({ height }) => height > 1) },
    ].filter((batch) => batch.pieces.length > 0)
    for (const batch of batches) this.#library.copyH2dBatch(batch.on, batch.pieces)
    const used = batches.length === 0 ? [stream] : batches.map(({ on }) => on)
    this.#inFlight.push({ events: used.map((one) => this.#record(one)), done })
    this.h2d.begin(nowMs)
  }

  #record(stream: Handle): Handle {
    const event = this.#memory.event()
    this.#library.eventRecord(event, stream)
    this.#library.eventNotify(event, this.#signal)
    return event
  }

  /** @throws NativeError what failed in a copy */
  takeComplete(nowMs: number): void {
    for (let group = this.#inFlight[0]; group !== undefined; group = this.#inFlight[0]) {
      for (let event = group.events[0]; event !== undefined; event = group.events[0]) {
        if (!this.#library.eventQuery(event)) return
        group.events.shift()
        this.#memory.reuse(event)
      }
      this.#inFlight.shift()
      this.h2d.end(nowMs)
      group.done()
    }
  }
}
