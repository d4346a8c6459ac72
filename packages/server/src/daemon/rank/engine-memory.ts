import type { Handle, Library } from '@ckpt/cuda'
import { DeviceWork } from './device-work.ts'

/** One allocation of an engine worker. */
export interface EngineAllocation {
  /** What it is opened with, hex. */
  readonly handle: string
  readonly bytes: number
}

/** The engine's own memory, opened for one direct update, with the stream that writes it. Opening 16 GB takes 8 ms. */
export class EngineMemory {
  /** It is the engine's, and counted there. */
  readonly bytes = 0
  readonly stream: Handle
  readonly #library: Library
  readonly #work: DeviceWork
  readonly #opened: Handle[] = []

  /** @throws CkptError what the device says of an allocation */
  constructor(library: Library, device: number, allocations: readonly EngineAllocation[]) {
    this.#library = library
    this.#work = new DeviceWork(library, device)
    try {
      for (const { handle, bytes } of allocations) {
        const opened = library.memoryOpen(device, Uint8Array.fromHex(handle), bytes)
        this.#work.onFree(() => library.memoryFree(opened))
        this.#opened.push(opened)
      }
      this.stream = this.#work.stream()
    } catch (error) {
      this.#work.free()
      throw error
    }
  }

  /** Handle of an allocation, by its index. */
  memory(allocation: number): Handle {
    const memory = this.#opened[allocation]
    if (memory === undefined) throw new Error(`there is no allocation ${allocation}`)
    return memory
  }

  /** See {@link DeviceWork.event}. */
  event(): Handle {
    return this.#work.event()
  }

  reuse(event: Handle): void {
    this.#work.reuse(event)
  }

  /** Host memory that its copies read, freed with it. */
  own(buffer: Handle): void {
    this.#work.onFree(() => this.#library.bufferFree(buffer))
  }

  /** Waits until nothing writes it any more; false when that takes longer. Blocks. */
  settle(timeoutMs: number): boolean {
    return this.#work.settle(timeoutMs)
  }

  /** Closes what was opened: a dead engine's memory would be held otherwise. {@link EngineMemory.settle} first. */
  free(): void {
    const failure = this.#work.free()
    if (failure !== null) throw failure
  }
}
