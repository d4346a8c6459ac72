import type { GatherPiece } from '@ckpt/cuda'
import type { SharedDevices } from './shared-devices.ts'
import { type Extent, TracedMemory } from './traced-memory.ts'

/** Host memory that a process copies from: buffers of its own, which know what lies in them, and those of a checkpoint, which never change. */
export class HostBuffers {
  readonly #shared: SharedDevices
  readonly #own = new Map<number, TracedMemory>()
  readonly #uses: (buffer: number) => boolean

  /** @param uses whether a copy out of it is under way or to come */
  constructor(shared: SharedDevices, uses: (buffer: number) => boolean) {
    this.#shared = shared
    this.#uses = uses
  }

  alloc(bytes: number): number {
    const handle = this.#shared.handle()
    this.#own.set(handle, new TracedMemory(bytes))
    return handle
  }

  free(buffer: number): void {
    const { witness } = this.#shared
    const memory = this.#own.get(buffer)
    if (memory === undefined) return witness.violated(`buffer ${buffer} has been given back`)
    if (this.#uses(buffer)) witness.violated('host memory was freed that is read')
    if (memory.readers.size > 0) witness.violated('host memory was freed that is being filled')
    memory.freed = true
    this.#own.delete(buffer)
  }

  /** One of its own. */
  memory(buffer: number): TracedMemory {
    const memory = this.#own.get(buffer)
    if (memory === undefined) throw new Error(`there is no buffer ${buffer}`)
    return memory
  }

  content(buffer: number, at: number, bytes: number): Extent[] {
    const own = this.#own.get(buffer)
    return own?.content(at, bytes) ?? [{ start: 0, end: bytes, buffer, offset: at }]
  }

  /** As `ckpt_buffer_gather`. */
  gather(to: number, pieces: readonly GatherPiece[]): void {
    const memory = this.memory(to)
    for (const { srcBuffer, srcOffset, srcPitch, dstOffset, dstPitch, width, height } of pieces) {
      for (let row = 0; row < height; row++) {
        const content = this.content(srcBuffer, srcOffset + row * srcPitch, width)
        memory.put(dstOffset + row * dstPitch, width, content)
      }
    }
  }
}
