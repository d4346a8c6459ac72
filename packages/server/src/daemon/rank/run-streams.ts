import type { Handle, Library } from '@ckpt/cuda'
import { isIdleWithin } from './device-work.ts'
import type { RankEvent } from './messages.ts'

const IDLE_AGAIN_MS = 20

/** What the runs of a rank copy with, which outlives its Worker, and when nothing of it goes on. */
export class RunStreams {
  readonly #library: Library
  /** What direct runs write engines' memory with, until they are known to have settled. */
  readonly #direct = new Map<number, readonly Handle[]>()
  /** What copies out of the checkpoint for the run through a ring that goes on. */
  #ring: { readonly run: number; readonly streams: readonly Handle[] } | null = null
  /** Direct runs whose copies could not be stopped: when they have ended. */
  readonly #writing = new Map<number, PromiseWithResolvers<void>>()
  /** The Worker in place of this one is ending their streams. */
  #ending: Promise<void> = Promise.resolve()

  constructor(library: Library) {
    this.#library = library
  }

  /** A run through a ring has opened. */
  opened(run: number, streams: readonly Handle[]): void {
    this.#ring = { run, streams }
  }

  take(run: number, event: RankEvent): void {
    if (event.type === 'begun') this.#direct.set(run, event.streams)
    // then every copy is complete
    if (event.type === 'transferred' || (event.type === 'closed' && event.settled)) {
      this.settled(run)
    }
  }

  /** Nothing of a run goes on. */
  settled(run: number): void {
    this.#direct.delete(run)
  }

  /** The copies of a run could not be stopped: `settled` resolves when they have ended. */
  goOn(run: number, settled: Promise<void>): void {
    if (!this.#direct.has(run)) return
    const writing = Promise.withResolvers<void>()
    this.#writing.set(run, writing)
    void settled.then(() => {
      this.#writing.delete(run)
      writing.resolve()
    })
  }

  /** Resolves when no copy of a direct run that has ended writes an engine's memory any more. */
  async quiet(): Promise<void> {
    await Promise.all([...this.#writing.values()].map(({ promise }) => promise))
  }

  /** Of a run of a Worker that has ended: when what it had enqueued is over. */
  async idle(run: number): Promise<void> {
    await this.#ending
    const ring = this.#ring?.run === run ? this.#ring.streams : []
    for (const stream of [...(this.#direct.get(run) ?? []), ...ring]) {
      // it does not block: other updates are served here
      while (!isIdleWithin(this.#library, stream, 0)) await Bun.sleep(IDLE_AGAIN_MS)
    }
    this.settled(run)
  }

  /**
   * Has somebody end what still writes engines' memory.
   *
   * @param end false: something is left in these streams; rejects when nobody is there for it any more
   */
  endWriting(end: (streams: readonly Handle[]) => Promise<boolean>): void {
    this.#ending = this.#end(end).catch(() => {}) // then somebody else
  }

  async #end(end: (streams: readonly Handle[]) => Promise<boolean>): Promise<void> {
    for (const [run, { resolve }] of this.#writing) {
      while (!(await end(this.#direct.get(run) ?? []))) await Bun.sleep(IDLE_AGAIN_MS)
      this.#writing.delete(run)
      resolve()
    }
  }
}
