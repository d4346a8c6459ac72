import type { Handle, Library } from '@ckpt/cuda'

/** A handle is an index and, from this bit on, a generation. */
const FIRST_GENERATION = 2 ** 18
const HANDLES_MAX = 4096

/** All of the process, which must have none but rings; how many there were. */
export function freeDeviceMemory(native: Library): number {
  return countWhere((handle) => native.memoryFree(handle))
}

/** How many communicators there are; they are of no use any more. */
export function abortCommunicators(native: Library): number {
  return countWhere((handle) => native.communicatorAbort(handle))
}

function countWhere(call: (handle: Handle) => void): number {
  let count = 0
  for (let index = 0; index < HANDLES_MAX; index++) {
    try {
      call(FIRST_GENERATION + index)
      count++
    } catch {
      // another kind of object, or none
    }
  }
  return count
}
