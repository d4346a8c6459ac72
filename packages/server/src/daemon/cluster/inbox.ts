import { MESSAGE_BYTES_MAX, type MessageStart, type Piece } from '@ckpt/core/cluster/packets'

export interface ReceivedMessage {
  readonly kind: MessageStart['kind']
  readonly id: number
  readonly blobs: readonly Uint8Array<ArrayBuffer>[]
}

/** Puts the messages of one session together again from their pieces. */
export class Inbox {
  #start: MessageStart | null = null
  #blobs: Uint8Array<ArrayBuffer>[] = []
  /** Bytes of the last of the blobs that are there. */
  #filled = 0

  /**
   * @param frames the piece's, each with a buffer for itself
   * @returns the message that is whole now; null: more is to come
   * @throws Error with what is wrong with the piece
   */
  take(piece: Piece, frames: readonly Uint8Array[]): ReceivedMessage | null {
    if (piece.start !== undefined) this.#begin(piece.start)
    const start = this.#start
    if (start === null) throw new Error('a piece of no message')
    for (const frame of frames) this.#add(start.sizes, frame as Uint8Array<ArrayBuffer>)
    this.#open(start.sizes)
    if (this.#blobs.length < start.sizes.length || !this.#full(start.sizes)) return null
    const blobs = this.#blobs
    this.#start = null
    this.#blobs = []
    return { kind: start.kind, id: start.id, blobs }
  }

  #begin(start: MessageStart): void {
    if (this.#start !== null) throw new Error('a message within a message')
    const bytes = start.sizes.reduce((sum, size) => sum + size, 0)
    if (bytes > MESSAGE_BYTES_MAX) throw new Error(`a message of ${bytes} bytes`)
    this.#start = start
    this.#filled = 0
  }

  #full(sizes: readonly number[]): boolean {
    const at = this.#blobs.length - 1
    return at < 0 || this.#filled === sizes[at]
  }

  /** Empty blobs have no bytes that would begin them. */
  #open(sizes: readonly number[]): void {
    while (this.#full(sizes) && sizes[this.#blobs.length] === 0) {
      this.#blobs.push(new Uint8Array(0))
      this.#filled = 0
    }
  }

  #add(sizes: readonly number[], frame: Uint8Array<ArrayBuffer>): void {
    let at = 0
    while (at < frame.length) {
      this.#open(sizes)
      if (this.#full(sizes)) {
        const size = sizes[this.#blobs.length]
        if (size === undefined) throw new Error('more bytes than its message has')
        if (at === 0 && frame.length === size) {
          this.#blobs.push(frame)
          this.#filled = size
          return
        }
        this.#blobs.push(new Uint8Array(size))
        this.#filled = 0
      }
      const blob = this.#blobs.at(-1)!
      const some = frame.subarray(at, at + blob.length - this.#filled)
      blob.set(some, this.#filled)
      this.#filled += some.length
      at += some.length
    }
  }
}
