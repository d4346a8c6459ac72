/** A broadcast that is on a device. */
export interface Launched {
  /** The memory of its rank. */
  readonly handle: number
  readonly ended: (() => void)[]
}

/**
 * What ranks of one process on one device do to each other: their streams may share a hardware queue, in which a copy stands behind
 * a broadcast of another rank until that has ended, whomever it waits for.
 */
export class HardwareQueues {
  readonly #launched = new Set<Launched>()

  /** Returns its end. */
  launch(handle: number): () => void {
    const launched: Launched = { handle, ended: [] }
    this.#launched.add(launched)
    return () => {
      this.#launched.delete(launched)
      for (const told of launched.ended.splice(0)) told()
    }
  }

  /** Calls `begin`, now or when the broadcasts of other ranks have ended that stand before a copy to this memory. */
  behind(handle: number, begin: () => void): void {
    const before = [...this.#launched].filter((one) => one.handle !== handle)
    let left = before.length
    if (left === 0) return begin()
    const ended = () => {
      if (--left === 0) begin()
    }
    for (const one of before) one.ended.push(ended)
  }
}
