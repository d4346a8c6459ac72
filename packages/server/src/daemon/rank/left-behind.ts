/** What a Worker that has died leaves behind, as the one in its place ends it. */
import { CkptError } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import { isIdleWithin } from './device-work.ts'

/**
 * Ends streams in which nothing is left, or will be within this time; who enqueues something in them later is refused. False: something
 * is. Blocks.
 */
export function endStreams(
  library: Library,
  streams: readonly Handle[],
  timeoutMs: number,
): boolean {
  if (!streams.every((stream) => isIdleWithin(library, stream, timeoutMs))) return false
  end(streams, (stream) => library.streamDestroy(stream))
  return true
}

/** Host memory; what copies still use goes when those have ended. */
export function freeBuffers(library: Library, buffers: readonly Handle[]): void {
  end(buffers, (buffer) => library.bufferFree(buffer))
}

/** All of them. What has gone already, or has failed before it ended, is gone. */
function end(handles: readonly Handle[], one: (handle: Handle) => void): void {
  for (const handle of handles) {
    try {
      one(handle)
    } catch (error) {
      if (CkptError.wrap(error).code === 'device_lost') throw error
    }
  }
}
