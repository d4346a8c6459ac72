import { CkptError } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'

/** Streams and events of one run on a device, and all that is to be given back when nothing uses it any more. */
export class DeviceWork {
  readonly #library: Library
  readonly #device: number
  readonly #streams: Handle[] = []
  readonly #undo: (() => void)[] = []
  readonly #freeEvents: Handle[] = []
  #freed = false

  constructor(library: Library, device: number) {
    this.#library = library
    this.#device = device
  }

  stream(): Handle {
    const stream = this.#library.streamCreate(this.#device)
    this.#streams.push(stream)
    this.onFree(() => this.#library.streamDestroy(stream))
    return stream
  }

  /** An event of this device; give it back with {@link DeviceWork.reuse} when it has completed. */
  event(): Handle {
    const free = this.#freeEvents.pop()
    if (free !== undefined) return free
    const event = this.#library.eventCreate(this.#device)
    this.onFree(() => this.#library.eventDestroy(event))
    return event
  }

  reuse(event: Handle): void {
    this.#freeEvents.push(event)
  }

  /** What is done last is undone first. */
  onFree(undo: () => void): void {
    this.#undo.push(undo)
  }

  /** Waits until nothing is left in its streams; false when that takes longer. Blocks. */
  settle(timeoutMs: number): boolean {
    if (this.#freed) return true
    const endMs = performance.now() + timeoutMs
    return this.#streams.every((stream) => {
      const leftMs = Math.max(0, Math.ceil(endMs - performance.now()))
      return isIdleWithin(this.#library, stream, leftMs)
    })
  }

  get freed(): boolean {
    return this.#freed
  }

  /** {@link DeviceWork.settle} first. Frees the rest when one part cannot be freed, and returns why; null: all was freed. */
  free(): unknown {
    if (this.#freed) return null
    this.#freed = true
    let first: unknown = null
    for (const undo of this.#undo.reverse()) {
      try {
        undo()
      } catch (error) {
        first ??= error
      }
    }
    return first
  }
}

/** Whether nothing is left in a stream, or will be within this time. What failed in it has ended. Blocks. */
export function isIdleWithin(library: Library, stream: Handle, timeoutMs: number): boolean {
  try {
    library.streamSync(stream, 0, timeoutMs)
    return true
  } catch (error) {
    return !(error instanceof CkptError && error.code === 'update_timeout')
  }
}
