import type { UpdateEvent } from '@ckpt/core'
import { log } from '../log.ts'

/**
 * The events as a server-sent event stream that ends with them. A comment is sent whenever nothing has happened for
 * `heartbeatMs`, so that proxies keep the connection and a client that is gone is noticed.
 */
export function eventStream(events: AsyncIterable<UpdateEvent>, heartbeatMs: number): Response {
  const iterator = events[Symbol.asyncIterator]()
  const encoder = new TextEncoder()
  let next: Promise<IteratorResult<UpdateEvent>> | null = null
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      // sent at once, so that the client has its headers before the first event
      controller.enqueue(encoder.encode(': events\n\n'))
    },
    async pull(controller) {
      next ??= iterator.next()
      const result = await orSilence(next, heartbeatMs)
      if (result === null) {
        controller.enqueue(encoder.encode(': heartbeat\n\n'))
        return
      }
      next = null
      if (result.done === true) controller.close()
      else controller.enqueue(encoder.encode(formatEvent(result.value)))
    },
    cancel() {
      // settles when the update's next event comes: nobody waits for it
      iterator.return?.().catch((error) => log.warn('events: {error}', { error: String(error) }))
    },
  })
  return new Response(body, {
    headers: {
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    },
  })
}

/** `data` is one line: JSON has no raw line breaks. */
export function formatEvent(event: UpdateEvent): string {
  return `event: ${event.event}\ndata: ${JSON.stringify(event)}\n\n`
}

async function orSilence<T>(value: Promise<T>, silenceMs: number): Promise<T | null> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const silence = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, silenceMs, null)
  })
  try {
    return await Promise.race([value, silence])
  } finally {
    clearTimeout(timer)
  }
}
