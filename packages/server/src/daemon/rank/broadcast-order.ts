/**
 * Holds broadcasts back until their root has the bytes, in the order in which every rank calls them.
 *
 * A kernel of NCCL that waits for its root keeps a part of the device busy, takes turns with the engine's processes there, and
 * stands in the way of copies that share its hardware queue: ranks of one device could wait for each other for ever. So nothing is
 * launched that would wait for more than the others' launches.
 */
export class BroadcastOrder {
  readonly #member: number
  readonly #copied: (root: number) => number
  /** By root: broadcasts that were called. */
  readonly #called: number[] = []
  readonly #held: { readonly root: number; readonly index: number; readonly run: () => void }[] = []
  #next = 0

  /**
   * @param member this rank; of its own broadcasts the device knows when it has the bytes
   * @param copied how many of its segments a root has, in the order of its broadcasts
   */
  constructor(member: number, copied: (root: number) => number) {
    this.#member = member
    this.#copied = copied
  }

  /** `run` enqueues it, now or in a {@link BroadcastOrder.goOn}. */
  broadcast(root: number, run: () => void): void {
    const index = this.#called[root] ?? 0
    this.#called[root] = index + 1
    this.#add(root, index, run)
  }

  /** What comes behind the broadcasts that were called before. */
  behind(run: () => void): void {
    this.#add(this.#member, 0, run)
  }

  #add(root: number, index: number, run: () => void): void {
    this.#held.push({ root, index, run })
    this.goOn()
  }

  /** Enqueues what has become ready. */
  goOn(): void {
    for (;;) {
      const first = this.#held[this.#next]
      if (first === undefined) break
      if (first.root !== this.#member && this.#copied(first.root) <= first.index) return
      this.#next++
      first.run()
    }
    this.#held.length = 0
    this.#next = 0
  }
}
