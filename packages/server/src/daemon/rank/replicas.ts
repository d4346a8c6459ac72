import type { DirectCopy, FetchedRanges, Share, SharedPlan, Taken } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import type { Board } from './board.ts'
import type { EngineMemory } from './engine-memory.ts'
import { InFlight, type InFlightCalls } from './in-flight.ts'
import type { BusyIntervals } from './intervals.ts'

/** Batches of copies on their way at a time. */
const IN_FLIGHT_MAX = 8
/** Of a batch: what is on its way cannot be called back. */
const BATCH_BYTES = 64 * 2 ** 20
/** How far it is looked ahead of what is not there yet: other ranks bring theirs in about the same order. */
const AHEAD = 256

/** What is called of the native library. */
export type ReplicaCalls = InFlightCalls & Pick<Library, 'copyDevice' | 'signalRaise'>

export interface GivenChunk {
  readonly chunk: number
  readonly fragment: number
}

export interface ReplicaTarget {
  readonly library: ReplicaCalls
  readonly signal: Handle
  readonly share: Share
  readonly shared: SharedPlan
  /** The copy of each own fragment. */
  readonly fragments: readonly DirectCopy[]
  /** Given fragments of what is fetched, by the last chunk that has some of them. */
  readonly givenChunks: readonly GivenChunk[]
  /** Of each sharer. */
  readonly boards: readonly Board[]
  readonly own: Board
  /** Of the other sharers. */
  readonly signals: readonly Handle[]
}

/** What one rank takes out of the memory of the engines of its daemon's other ranks, and what it says that they can take. Nothing here waits. */
export class Replicas {
  readonly #target: ReplicaTarget
  readonly #memory: EngineMemory
  /** In the order in which they are brought, as far as others are as fast as this rank. */
  readonly #left: Taken[]
  readonly #inFlight: InFlight
  #complete = 0
  /** Of `givenChunks`. */
  #fetchedGiven = 0

  constructor(target: ReplicaTarget, memory: EngineMemory) {
    this.#target = target
    this.#memory = memory
    this.#left = [...target.share.taken]
    this.#inFlight = new InFlight(target.library, target.signal, memory, IN_FLIGHT_MAX)
  }

  get busy(): BusyIntervals {
    return this.#inFlight.busy
  }

  get count(): number {
    return this.#target.share.taken.length
  }

  /** Fragments that have been taken. */
  get complete(): number {
    return this.#complete
  }

  get done(): boolean {
    return this.#complete === this.count
  }

  /** Copies `[first, end)` of the plan are complete. */
  copied(first: number, end: number): void {
    this.#give([...this.#target.shared.given.subarray(first, end)].filter((one) => one !== -1))
  }

  /** So many chunks of what is fetched, from the first one on, are complete. */
  fetched(chunks: number): void {
    const { givenChunks } = this.#target
    const first = this.#fetchedGiven
    while ((givenChunks[this.#fetchedGiven]?.chunk ?? chunks) < chunks) this.#fetchedGiven++
    this.#give(givenChunks.slice(first, this.#fetchedGiven).map((one) => one.fragment))
  }

  #give(fragments: readonly number[]): void {
    if (fragments.length === 0) return
    const { own, library, signals } = this.#target
    for (const one of fragments) own.give(one, this.#memory.memory(this.#copyOf(one).allocation))
    for (const signal of signals) library.signalRaise(signal, 0)
  }

  #copyOf(fragment: number): DirectCopy {
    return this.#target.fragments[fragment] as DirectCopy
  }

  /** @throws NativeError what failed in a copy */
  takeComplete(nowMs: number): void {
    this.#inFlight.takeComplete(nowMs)
  }

  /** Takes what is there. */
  enqueue(nowMs: number): void {
    while (this.#inFlight.hasRoom && this.#takeBatch(nowMs)) {}
  }

  /** Whether there was something to take. */
  #takeBatch(nowMs: number): boolean {
    const stream = this.#memory.peerStream
    let [count, bytes] = [0, 0]
    for (let at = 0; at < Math.min(AHEAD, this.#left.length) && bytes < BATCH_BYTES; ) {
      const taken = this.#left[at] as Taken
      if (this.#take(taken, stream)) {
        this.#left.splice(at, 1)
        count++
        bytes += this.#copyOf(taken.fragment).width
      } else at++
    }
    if (count === 0) return false
    this.#inFlight.add([stream], nowMs, () => (this.#complete += count))
    return true
  }

  #take({ fragment, from, theirs }: Taken, stream: Handle): boolean {
    const { library, boards } = this.#target
    const place = boards[from]?.placeOf(theirs) ?? null
    if (place === null) return false
    const { allocation, destination, width } = this.#copyOf(fragment)
    const piece = { srcOffset: place.offset, dstOffset: destination, bytes: width }
    library.copyDevice(stream, this.#memory.memory(allocation), place.memory, [piece])
    return true
  }
}

/** @param given fragments of what is fetched */
export function givenChunks(
  given: readonly number[],
  fragments: readonly DirectCopy[],
  ranges: FetchedRanges,
): GivenChunk[] {
  const chunkOf = (owner: number, offset: number) => {
    const range = ranges.rangeAt(owner, offset)
    if (range === -1) throw new Error(`byte ${offset} of owner ${owner} is not fetched`)
    return ranges.chunkOf(range)
  }
  return given
    .map((fragment) => {
      const { owner, source, width } = fragments[fragment] as DirectCopy
      return { fragment, chunk: chunkOf(owner, source + width - 1) }
    })
    .sort((a, b) => a.chunk - b.chunk)
}
