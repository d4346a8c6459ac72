/**
 * Holds broadcasts back until their root has the bytes, in the order in which every rank calls them.
 *
 * A kernel of NCCL that waits for its root keeps a part of the device busy, takes turns with the engine's processes there, and
 * stands in the way of copies that share its hardware queue: ranks of one device could wait for each other for ever. So nothing is
 * launched before its bytes are there, and what is launched waits only for ranks whose ring has no room yet.
 *
 * Of a root in another process nobody knows, and its copies are in hardware queues of their own: its broadcasts are launched in
 * their turn. No copy waits behind them that they wait for: the first broadcast that is not complete keeps back everything behind
 * it in the process of its root, whose copies therefore end, and waits nowhere else for any.
 */
export class BroadcastOrder {
  readonly #copied: (root: number) => number
  readonly #hasRoom: () => boolean
  /** By root: segments whose broadcasts were called. */
  readonly #called: number[] = []
  readonly #held: { readonly root: number; readonly needs: number; readonly run: () => void }[] = []
  #next = 0

  /**
   * @param copied how many of its segments a root has, in the order of its broadcasts
   * @param hasRoom whether another one may be launched
   */
  constructor(copied: (root: number) => number, hasRoom: () => boolean = () => true) {
    this.#copied = copied
    this.#hasRoom = hasRoom
  }

  /**
   * `run` enqueues it, now or in a {@link BroadcastOrder.goOn}.
   *
   * @param segments how many of the root's it brings
   */
  broadcast(root: number, segments: number, run: () => void): void {
    const needs = (this.#called[root] ?? 0) + segments
    this.#called[root] = needs
    this.#add(root, needs, run)
  }

  /** What comes behind the broadcasts that were called before. */
  behind(run: () => void): void {
    this.#add(0, 0, run)
  }

  #add(root: number, needs: number, run: () => void): void {
    this.#held.push({ root, needs, run })
    this.goOn()
  }

  #isReady({ root, needs }: { readonly root: number; readonly needs: number }): boolean {
    return this.#copied(root) >= needs && this.#hasRoom()
  }

  /** Enqueues what has become ready. */
  goOn(): void {
    for (;;) {
      const first = this.#held[this.#next]
      if (first === undefined) break
      if (first.needs > 0 && !this.#isReady(first)) return
      this.#next++
      first.run()
    }
    this.#held.length = 0
    this.#next = 0
  }
}
