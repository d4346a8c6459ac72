import type { Handle, Library } from '@ckpt/cuda'
import { DeviceWork } from './device-work.ts'

/** The device memory of one update on one rank, with the streams that write it. */
export class Ring {
  readonly bytes: number
  readonly memory: Handle
  readonly copyStream: Handle
  readonly #library: Library
  readonly #work: DeviceWork
  #collectiveStream: Handle | null = null

  /** With a stream for copies. @throws CkptError `device_memory_exhausted` */
  constructor(library: Library, device: number, bytes: number) {
    this.#library = library
    this.#work = new DeviceWork(library, device)
    this.bytes = bytes
    try {
      this.memory = library.memoryAlloc(device, bytes)
      this.#work.onFree(() => library.memoryFree(this.memory))
      this.copyStream = this.#work.stream()
    } catch (error) {
      this.#work.free()
      throw error
    }
  }

  /** What an engine opens it with: a raw 64-byte IPC handle, and the name of the ref-counter file that torch wants: `/ckpt-...`. */
  share(): { handle: Uint8Array; refcounterName: string } {
    const handle = this.#library.memoryExport(this.memory)
    const { refcounter, name } = this.#library.refcounterCreate()
    this.#work.onFree(() => this.#library.refcounterDestroy(refcounter))
    return { handle, refcounterName: name }
  }

  /** The stream for broadcasts, which a rank that is alone does not have. */
  get collectiveStream(): Handle {
    this.#collectiveStream ??= this.#work.stream()
    return this.#collectiveStream
  }

  /** See {@link DeviceWork.event}. */
  event(): Handle {
    return this.#work.event()
  }

  reuse(event: Handle): void {
    this.#work.reuse(event)
  }

  /** Waits until nothing writes the ring any more; false when that takes longer. Blocks. */
  settle(timeoutMs: number): boolean {
    return this.#work.settle(timeoutMs)
  }

  get freed(): boolean {
    return this.#work.freed
  }

  /** Only when no engine can read it; waits for the work in its streams, so {@link Ring.settle} first. Frees the rest when one part cannot be freed. */
  free(): void {
    const failure = this.#work.free()
    if (failure !== null) throw failure
  }
}
