/** What the engine's thread is told. */
export interface EngineTask {
  /** Where the daemon's socket is bound. */
  readonly address: string
  readonly heard: SharedArrayBuffer
}

/** What the engine's thread has heard, in shared memory: a count of messages (int32), then the SHA-256 of the last one. */
export class Heard {
  static readonly BYTES = 4 + 32
  readonly #count: Int32Array
  readonly #digest: Uint8Array

  constructor(memory: SharedArrayBuffer) {
    this.#count = new Int32Array(memory, 0, 1)
    this.#digest = new Uint8Array(memory, 4, 32)
  }

  get count(): number {
    return Atomics.load(this.#count, 0)
  }

  /** Hex. */
  get digest(): string {
    return Buffer.from(this.#digest).toString('hex')
  }

  add(digest: Uint8Array): void {
    this.#digest.set(digest)
    Atomics.add(this.#count, 0, 1)
    Atomics.notify(this.#count, 0)
  }

  /** Waits until `count` messages have been hashed. Blocks. */
  wait(count: number, timeoutMs: number): void {
    const endMs = performance.now() + timeoutMs
    for (let seen = this.count; seen < count; seen = this.count) {
      const leftMs = endMs - performance.now()
      if (leftMs <= 0) throw new Error(`the engine has heard ${seen} messages, not ${count}`)
      Atomics.wait(this.#count, 0, seen, leftMs)
    }
  }
}
