import type { Handle, Library } from '@ckpt/cuda'
import { type EngineAllocation, EngineMemory } from './engine-memory.ts'

/** CUDA opens no handle in the process that has exported it: memory of this process in place of an engine's. */
export class OwnMemory extends EngineMemory {
  protected override openAllocation(
    library: Library,
    device: number,
    { bytes }: EngineAllocation,
  ): Handle {
    return library.memoryAlloc(device, bytes)
  }
}
