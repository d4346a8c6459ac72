import type { BuffersAnswer } from '@ckpt/core'
import { log } from '../log.ts'

/**
 * Trainers that write into buffers, by the connections on which they got them: the kernel closes a connection when its
 * process ends, however it ends, so a trainer that is gone is noticed at once and without asking for process ids.
 */
export class BufferHolds {
  readonly #abandon: (buffers: readonly string[]) => Promise<void>
  readonly #open = new Set<() => void>()
  #closed = false

  /** `abandon` is told the ids of the buffers when their connection has ended, also after they were registered. */
  constructor(abandon: (buffers: readonly string[]) => Promise<void>) {
    this.#abandon = abandon
  }

  /** The answer as one line of JSON in a body that does not end before the client closes it. */
  answer(answer: BuffersAnswer): Response {
    let close = () => {}
    const end = () => {
      this.#open.delete(close)
      this.#abandon(answer.buffers.map(({ id }) => id)).catch((error) =>
        log.error('buffers of a trainer that is gone: {error}', { error: String(error) }),
      )
    }
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        controller.enqueue(new TextEncoder().encode(`${JSON.stringify(answer)}\n`))
        close = () => {
          controller.close()
          end()
        }
        this.#open.add(close)
        if (this.#closed) close()
      },
      pull: () => new Promise<void>(() => {}),
      // also when the client has gone before it was answered
      cancel: end,
    })
    return new Response(body, { headers: { 'content-type': 'application/json' } })
  }

  /** Ends every connection: the daemon closes. */
  close(): void {
    this.#closed = true
    for (const close of this.#open) close()
  }
}
