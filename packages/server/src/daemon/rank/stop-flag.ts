/**
 * Asks another thread to stop what it does. What goes there in a message is its `memory`.
 *
 * @example
 * const flag = new StopFlag()
 * port.postMessage(flag.memory) // there: new StopFlag(memory).stopped
 * flag.stop()
 */
export class StopFlag {
  readonly memory: SharedArrayBuffer
  readonly #word: Int32Array

  constructor(memory = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT)) {
    this.memory = memory
    this.#word = new Int32Array(memory)
  }

  stop(): void {
    Atomics.store(this.#word, 0, 1)
  }

  get stopped(): boolean {
    return Atomics.load(this.#word, 0) !== 0
  }
}
