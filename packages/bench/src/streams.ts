import type { Handle, Library } from '@ckpt/cuda'

/** A stream and an event of its device. */
export interface Lane {
  readonly stream: Handle
  readonly event: Handle
}

/** For single copies of at most some GiB. */
export const WAIT_MS = 60_000

/** `stack` destroys them. */
export function openLane(library: Library, stack: DisposableStack, device: number): Lane {
  const stream = library.streamCreate(device)
  stack.defer(() => library.streamDestroy(stream))
  const event = library.eventCreate(device)
  stack.defer(() => library.eventDestroy(event))
  return { stream, event }
}

/**
 * Waits for the work in all lanes. CUDA's `streamSync` sleeps 50 us between two looks, ten times what a copy of 64 KiB takes, so
 * there it looks without a pause; the host library wakes its waiter. Throws the error of the work.
 */
export function finish(library: Library, lanes: readonly Lane[]): void {
  if (library.kind === 'host') {
    for (const { stream } of lanes) library.streamSync(stream, 0, WAIT_MS)
    return
  }
  for (const { stream, event } of lanes) library.eventRecord(event, stream)
  const endMs = performance.now() + WAIT_MS
  for (const { event } of lanes) {
    while (!library.eventQuery(event)) {
      if (performance.now() > endMs) throw new Error(`the copies take more than ${WAIT_MS} ms`)
    }
  }
}
