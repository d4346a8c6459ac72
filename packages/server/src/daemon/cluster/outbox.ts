import type { MessageStart } from '@ckpt/core'
import type { CarriedMessage } from './messages.ts'

/**
 * Messages are cut, so that no part keeps the signs of life behind it waiting: at 1 MB/s a piece takes a quarter of a second.
 */
export const PIECE_BYTES = 2 ** 18
/** The most frames of a piece beside its head: libzmq's binding takes 64 in all. */
const PIECE_FRAMES = 32

/** The messages that wait to be sent in one session, in order, and how far the first has gone. */
export class Outbox {
  readonly #messages: CarriedMessage[] = []
  #bytes = 0
  /** Of the first message: how many blobs have gone, and how many bytes of the next. */
  #blob = 0
  #offset = 0
  #begun = false
  #frames: Uint8Array[] | null = null

  /** Bytes of the messages that wait, whole ones. */
  get bytes(): number {
    return this.#bytes
  }

  get empty(): boolean {
    return this.#messages.length === 0
  }

  push(message: CarriedMessage): void {
    this.#messages.push(message)
    this.#bytes += bytesOf(message)
  }

  /**
   * The frames of the next piece; the same ones until {@link Outbox.sent}.
   *
   * @param head makes the first frame; null: the session is over
   */
  next(head: (start: MessageStart | null) => Uint8Array | null): Uint8Array[] | null {
    const [message] = this.#messages
    if (message === undefined) return null
    if (this.#frames !== null) return this.#frames
    const { kind, id, blobs } = message
    const sizes = () => blobs.map(({ length }) => length)
    const first = head(this.#begun ? null : { kind, id, sizes: sizes() })
    if (first === null) return null
    this.#begun = true
    this.#frames = [first, ...this.#cut(blobs)]
    return this.#frames
  }

  #cut(blobs: readonly Uint8Array[]): Uint8Array[] {
    const frames: Uint8Array[] = []
    let room = PIECE_BYTES
    while (this.#blob < blobs.length) {
      const blob = blobs[this.#blob]!
      // to the other side an empty one is there with what comes before it: a piece for it would be one of no message
      const full = room === 0 || frames.length === PIECE_FRAMES
      if (full && blob.length > 0) break
      const frame = blob.subarray(this.#offset, this.#offset + room)
      if (frame.length > 0) frames.push(frame)
      room -= frame.length
      this.#offset += frame.length
      if (this.#offset < blob.length) continue
      this.#blob++
      this.#offset = 0
    }
    return frames
  }

  /** The piece that `next` has given is on its way. */
  sent(): void {
    this.#frames = null
    const [message] = this.#messages
    if (message === undefined || this.#blob < message.blobs.length) return
    this.#messages.shift()
    this.#bytes -= bytesOf(message)
    this.#blob = 0
    this.#begun = false
  }
}

function bytesOf({ blobs }: CarriedMessage): number {
  return blobs.reduce((sum, { length }) => sum + length, 0)
}
