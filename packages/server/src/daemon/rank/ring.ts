import type { Handle, Library } from '@ckpt/cuda'
import { CkptError } from '@ckpt/core'

/** The device memory of one update on one rank, with the streams that write it. */
export class Ring {
  readonly bytes: number
  readonly memory: Handle
  readonly copyStream: Handle
  readonly #library: Library
  readonly #device: number
  readonly #undo: (() => void)[] = []
  readonly #freeEvents: Handle[] = []
  #collectiveStream: Handle | null = null
  #freed = false

  /** With a stream for copies. @throws CkptError `device_memory_exhausted` */
  constructor(library: Library, device: number, bytes: number) {
    this.#library = library
    this.#device = device
    this.bytes = bytes
    try {
      this.memory = library.memoryAlloc(device, bytes)
      this.#undo.push(() => library.memoryFree(this.memory))
      this.copyStream = this.#stream()
    } catch (error) {
      this.free()
      throw error
    }
  }

  /** What an engine opens it with: a raw 64-byte IPC handle, and the name of the ref-counter file that torch wants: `/ckpt-...`. */
  share(): { handle: Uint8Array; refcounterName: string } {
    const handle = this.#library.memoryExport(this.memory)
    const { refcounter, name } = this.#library.refcounterCreate()
    this.#undo.push(() => this.#library.refcounterDestroy(refcounter))
    return { handle, refcounterName: name }
  }

  /** The stream for broadcasts, which a rank that is alone does not have. */
  get collectiveStream(): Handle {
    this.#collectiveStream ??= this.#stream()
    return this.#collectiveStream
  }

  #stream(): Handle {
    const stream = this.#library.streamCreate(this.#device)
    this.#undo.push(() => this.#library.streamDestroy(stream))
    return stream
  }

  /** An event of this device; give it back with {@link Ring.reuse} when it has completed. */
  event(): Handle {
    const free = this.#freeEvents.pop()
    if (free !== undefined) return free
    const event = this.#library.eventCreate(this.#device)
    this.#undo.push(() => this.#library.eventDestroy(event))
    return event
  }

  reuse(event: Handle): void {
    this.#freeEvents.push(event)
  }

  /** Waits until nothing writes the ring any more; false when that takes longer. Blocks. */
  settle(timeoutMs: number): boolean {
    const endMs = performance.now() + timeoutMs
    for (const stream of [this.copyStream, this.#collectiveStream]) {
      if (stream === null) continue
      try {
        this.#library.streamSync(stream, 0, Math.max(0, Math.ceil(endMs - performance.now())))
      } catch (error) {
        // every other error belongs to work that has ended
        if (error instanceof CkptError && error.code === 'update_timeout') return false
      }
    }
    return true
  }

  get freed(): boolean {
    return this.#freed
  }

  /** Only when no engine can read it; waits for the work in its streams, so {@link Ring.settle} first. Frees the rest when one part cannot be freed. */
  free(): void {
    if (this.#freed) return
    this.#freed = true
    let first: unknown = null
    for (const undo of this.#undo.reverse()) {
      try {
        undo()
      } catch (error) {
        first ??= error
      }
    }
    if (first !== null && this.memory !== undefined) throw first
  }
}
