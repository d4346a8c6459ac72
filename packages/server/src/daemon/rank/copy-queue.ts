import type { H2dPiece, Handle, Library } from '@ckpt/cuda'
import type { EngineMemory } from './engine-memory.ts'
import { InFlight, type InFlightCalls } from './in-flight.ts'
import type { BusyIntervals } from './intervals.ts'

/**
 * Groups of copies on their way at a time: few enough to stop soon, 7 ms, enough for the device not to wait while an allocation is
 * opened, which takes up to 5 ms.
 */
const IN_FLIGHT_MAX = 6

/** What is called of the native library. */
export type QueueCalls = InFlightCalls & Pick<Library, 'copyH2dBatch'>

/** Groups of copies into an engine's memory, in the order in which they complete. Nothing here waits. */
export class CopyQueue {
  readonly #library: QueueCalls
  readonly #memory: EngineMemory
  readonly #inFlight: InFlight

  /** @param signal is woken when a group is complete */
  constructor(library: QueueCalls, signal: Handle, memory: EngineMemory) {
    this.#library = library
    this.#memory = memory
    this.#inFlight = new InFlight(library, signal, memory, IN_FLIGHT_MAX)
  }

  get h2d(): BusyIntervals {
    return this.#inFlight.busy
  }

  get hasRoom(): boolean {
    return this.#inFlight.hasRoom
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
    this.#inFlight.add(used, nowMs, done)
  }

  /** @throws NativeError what failed in a copy */
  takeComplete(nowMs: number): void {
    this.#inFlight.takeComplete(nowMs)
  }
}
