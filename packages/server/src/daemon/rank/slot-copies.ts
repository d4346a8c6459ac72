import type { DirectCopy, FetchedCopies } from '@ckpt/core'
import type { H2dPiece } from '@ckpt/cuda'
import type { CopyQueue } from './copy-queue.ts'
import type { EngineMemory } from './engine-memory.ts'
import type { Fetches } from './fetches.ts'

/** Enqueues the copies of a direct update on one rank out of slots that were fetched into, chunk by chunk. Nothing here waits. */
export class SlotCopies {
  readonly #fetches: Fetches
  readonly #memory: EngineMemory
  readonly #queue: CopyQueue
  readonly #cut: FetchedCopies
  /** Chunks that were enqueued, or of which this rank needs nothing. */
  #enqueued = 0
  /** Of those, before the first one that is on its way. */
  #left = 0
  #onTheirWay: number[] = []
  readonly #copied: (chunks: number) => void

  /**
   * @param cut copies of what other daemons have
   * @param copied told of how many chunks, from the first one on, all is there that this rank copies
   */
  constructor(
    cut: FetchedCopies,
    fetches: Fetches,
    memory: EngineMemory,
    queue: CopyQueue,
    copied: (chunks: number) => void = () => {},
  ) {
    this.#copied = copied
    this.#cut = cut
    this.#fetches = fetches
    this.#memory = memory
    this.#queue = queue
    this.#skip()
  }

  /** Chunks that this rank needs no more. */
  get complete(): number {
    return this.#left
  }

  get done(): boolean {
    return this.#left === this.#fetches.chunkCount
  }

  /** Enqueues what has been fetched, as far as that is not too much at a time. */
  enqueue(nowMs: number): void {
    while (
      this.#queue.hasRoom &&
      this.#enqueued < this.#fetches.chunkCount &&
      this.#fetches.isThere(this.#enqueued)
    ) {
      const chunk = this.#enqueued
      this.#onTheirWay.push(chunk)
      this.#queue.add(this.#piecesOf(chunk), nowMs, () => this.#complete())
      this.#enqueued++
      this.#skip()
    }
  }

  #piecesOf(chunk: number): H2dPiece[] {
    const { buffer, offset } = this.#fetches.slotOf(chunk)
    const { ranges } = this.#fetches
    return this.#copiesOf(chunk).map((copy) => {
      const range = ranges.rangeAt(copy.owner, copy.source)
      const inRange = copy.source - ranges.begin(range)
      return {
        memory: this.#memory.memory(copy.allocation),
        memoryOffset: copy.destination,
        memoryPitch: copy.destinationPitch,
        buffer,
        bufferOffset: offset + ranges.offsetInSlot(range) + inRange,
        bufferPitch: copy.sourcePitch,
        width: copy.width,
        height: copy.height,
      }
    })
  }

  #copiesOf(chunk: number): readonly DirectCopy[] {
    const { copies, starts } = this.#cut
    return copies.slice(starts[chunk], starts[chunk + 1])
  }

  /** Over chunks of which this rank needs nothing. */
  #skip(): void {
    const { starts } = this.#cut
    while (
      this.#enqueued < this.#fetches.chunkCount &&
      starts[this.#enqueued] === starts[this.#enqueued + 1]
    ) {
      this.#enqueued++
    }
    this.#tell()
  }

  /** The queue completes them in order. */
  #complete(): void {
    this.#onTheirWay.shift()
    this.#tell()
  }

  #tell(): void {
    const left = this.#onTheirWay[0] ?? this.#enqueued
    if (left === this.#left) return
    this.#left = left
    this.#fetches.leave(left)
    this.#copied(left)
  }
}

/** What comes over the network makes room for more of it. */
export function copyFetched(fetches: Fetches, copies: SlotCopies, nowMs: number): void {
  fetches.step(nowMs)
  copies.enqueue(nowMs)
}
