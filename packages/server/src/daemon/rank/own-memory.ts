import type { Handle, Library } from '@ckpt/cuda'
import { EngineMemory } from './engine-memory.ts'

/** CUDA opens no handle in the process that has exported it: memory of this process in place of an engine's. */
export class OwnMemory extends EngineMemory {
  readonly #memories: readonly Handle[]

  /** @param memories of the allocations; not freed with it */
  constructor(library: Library, device: number, memories: readonly Handle[]) {
    super(library, device, [])
    this.#memories = memories
  }

  override has(allocation: number): boolean {
    return allocation < this.#memories.length
  }

  override memory(allocation: number): Handle {
    return this.#memories[allocation] as Handle
  }
}
