/** Whoever updates again and again waits less than this in between. */
const IDLE_MS = 100

/**
 * Collects the garbage of one thread when it has had no update for a moment. The runtime would do it at some time of its own, which
 * may be while an update begins or ends: all of the main thread's heap takes it 8 to 12 ms, of a rank's 18.
 */
export class IdleCollection {
  readonly #idle: () => boolean
  readonly #collect: () => void
  #timer: ReturnType<typeof setTimeout> | null = null

  /** @param idle whether nothing would have to wait */
  constructor(idle: () => boolean, collect = () => Bun.gc(true)) {
    this.#idle = idle
    this.#collect = collect
  }

  /** An update has ended. */
  restart(): void {
    this.pause()
    this.#timer = setTimeout(() => {
      this.#timer = null
      if (this.#idle()) this.#collect()
    }, IDLE_MS)
    this.#timer.unref()
  }

  /** There is something better to do. */
  pause(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
  }
}
