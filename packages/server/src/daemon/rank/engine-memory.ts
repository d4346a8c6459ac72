import { CkptError } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'

/** One allocation of an engine worker. */
export interface EngineAllocation {
  /** What it is opened with, hex. */
  readonly handle: string
  readonly bytes: number
}

/** The engine's own memory, opened for one direct update, with the stream that writes it. */
export class EngineMemory {
  /** It is the engine's, and counted there. */
  readonly bytes = 0
  readonly stream: Handle
  readonly #library: Library
  readonly #device: number
  readonly #opened: Handle[] = []
  readonly #events: Handle[] = []
  readonly #freeEvents: Handle[] = []
  readonly #buffers: Handle[] = []
  #freed = false

  /** @throws CkptError what the device says of an allocation */
  constructor(library: Library, device: number, allocations: readonly EngineAllocation[]) {
    this.#library = library
    this.#device = device
    this.stream = library.streamCreate(device)
    try {
      for (const { handle, bytes } of allocations) {
        this.#opened.push(library.memoryOpen(device, Uint8Array.fromHex(handle), bytes))
      }
    } catch (error) {
      this.free()
      throw error
    }
  }

  /** Handle of an allocation, by its index. */
  memory(allocation: number): Handle {
    const memory = this.#opened[allocation]
    if (memory === undefined) throw new Error(`there is no allocation ${allocation}`)
    return memory
  }

  /** An event of this device; give it back with {@link EngineMemory.reuse} when it has completed. */
  event(): Handle {
    const free = this.#freeEvents.pop()
    if (free !== undefined) return free
    const event = this.#library.eventCreate(this.#device)
    this.#events.push(event)
    return event
  }

  reuse(event: Handle): void {
    this.#freeEvents.push(event)
  }

  /** Host memory that its copies read, freed with it. */
  own(buffer: Handle): void {
    this.#buffers.push(buffer)
  }

  /** Waits until nothing writes it any more; false when that takes longer. Blocks. */
  settle(timeoutMs: number): boolean {
    if (this.#freed) return true
    try {
      this.#library.streamSync(this.stream, 0, timeoutMs)
    } catch (error) {
      // every other error belongs to work that has ended
      if (error instanceof CkptError && error.code === 'update_timeout') return false
    }
    return true
  }

  /** Closes what was opened: a dead engine's memory would be held otherwise. {@link EngineMemory.settle} first. */
  free(): void {
    if (this.#freed) return
    this.#freed = true
    const undo = [
      ...this.#events.map((event) => () => this.#library.eventDestroy(event)),
      () => this.#library.streamDestroy(this.stream),
      ...this.#opened.map((memory) => () => this.#library.memoryFree(memory)),
      ...this.#buffers.map((buffer) => () => this.#library.bufferFree(buffer)),
    ]
    const failures: unknown[] = []
    for (const one of undo) {
      try {
        one()
      } catch (error) {
        failures.push(error)
      }
    }
    if (failures.length > 0) throw failures[0]
  }
}
