import { FetchedRanges, type FetchPlan, type SourceSpace } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import { bufferFrom } from './source-buffer.ts'
import type { BusyIntervals } from './intervals.ts'
import { type Peer, PROGRESS_COPIED, PROGRESS_FETCHED, PROGRESS_SLOTS } from './messages.ts'

/** Of each rank: one is copied from while the others are filled. */
export const SLOTS = 4

/** What is called of the native library. */
export interface FetchCalls {
  readonly p2p: Pick<Library['p2p'], 'readStart' | 'readQuery' | 'readDestroy'>
  signalRaise(signal: Handle, bits: number): void
}

export interface FetchTarget {
  readonly library: FetchCalls
  readonly signal: Handle
  readonly plan: FetchPlan
  /** Of each owner. */
  readonly sources: readonly SourceSpace[]
  /** Per owner: what its buffers are read by; null: nothing of it is fetched. */
  readonly remotes: readonly (Uint32Array | null)[]
  /** See `DirectOpenOptions`. */
  readonly peers: readonly (Peer | null)[]
  readonly member: number
  /** Of the stage that the reads are a part of. */
  readonly busy: BusyIntervals
  /** Pinned memory of at least so many bytes, for this update alone. */
  slots(bytes: number): Handle
}

interface Sharer {
  readonly progress: Int32Array
  readonly signal: Handle
}

/**
 * What the ranks of one daemon read of other daemons' memory, each byte once: they fetch its chunks in turns, each into slots of its
 * own, and all copy from all slots. A slot is filled again when every rank has said that it needs its chunk no more. Nothing here waits.
 */
export class Fetches {
  readonly ranges: FetchedRanges
  readonly #target: FetchTarget
  /** The ranks that fetch in turns. */
  readonly #sharers: readonly Sharer[]
  /** Of this rank. */
  readonly #own: Sharer
  readonly #turn: number
  readonly #slots: Handle
  /** In the order of their chunks. */
  readonly #reads: Handle[] = []
  /** Of its own chunks. */
  #begun = 0
  #fetched = 0

  constructor(target: FetchTarget) {
    const { peers, member, plan } = target
    this.#target = target
    this.ranges = new FetchedRanges(plan)
    const here = [...peers.keys()].filter((at) => peers[at] !== null)
    this.#sharers = here.map((at) => {
      const { progress, signal } = peers[at] as Peer
      return { progress: new Int32Array(progress), signal }
    })
    this.#turn = here.indexOf(member)
    const own = this.#sharers[this.#turn]
    if (own === undefined) throw new Error('a rank is not among those that fetch with it')
    this.#own = own
    const count = Math.min(SLOTS, this.#ownCount)
    this.#slots = count === 0 ? 0 : target.slots(count * plan.slotBytes)
    Atomics.store(own.progress, PROGRESS_SLOTS, this.#slots)
  }

  get chunkCount(): number {
    return this.#target.plan.chunks.length - 1
  }

  /** Chunks that this rank fetches. */
  get #ownCount(): number {
    return Math.max(0, Math.ceil((this.chunkCount - this.#turn) / this.#sharers.length))
  }

  /** Looks what has come, and begins what there is room for. @throws NativeError what has ended a read */
  step(nowMs: number): void {
    const before = this.#fetched
    const { library, busy } = this.#target
    const { p2p } = library
    for (let read = this.#reads[0]; read !== undefined; read = this.#reads[0]) {
      if (!p2p.readQuery(read)) break
      this.#reads.shift()
      p2p.readDestroy(read)
      this.#fetched++
      busy.end(nowMs)
    }
    if (this.#fetched > before) this.#tell(PROGRESS_FETCHED, this.#fetched)
    while (this.#begun < this.#ownCount && this.#hasRoom()) this.#begin(nowMs)
  }

  #hasRoom(): boolean {
    const before = this.#begun - SLOTS
    if (before < 0) return true
    // what nobody needs may be on its way still
    if (before >= this.#fetched) return false
    const chunk = this.#chunkAt(before)
    return this.#sharers.every(({ progress }) => Atomics.load(progress, PROGRESS_COPIED) > chunk)
  }

  /** Of this rank's turns. */
  #chunkAt(turn: number): number {
    return this.#turn + turn * this.#sharers.length
  }

  #begin(nowMs: number): void {
    const { library, signal, busy } = this.#target
    const at = (this.#begun % SLOTS) * this.#target.plan.slotBytes
    const pieces = this.#piecesOf(this.#chunkAt(this.#begun), at)
    this.#reads.push(library.p2p.readStart(pieces, this.#slots, signal))
    this.#begun++
    busy.begin(nowMs)
  }

  /** A range may reach from one source buffer into the next, with a gap between them. */
  #piecesOf(chunk: number, slotAt: number) {
    const { plan, remotes, sources } = this.#target
    const pieces = []
    for (let range = plan.chunks[chunk]!; range < plan.chunks[chunk + 1]!; range++) {
      const owner = plan.ranges[3 * range] as number
      const source = sources[owner] as SourceSpace
      const { starts, bytes } = source
      const [begin, end] = [this.ranges.begin(range), this.ranges.end(range)]
      const to = slotAt + this.ranges.offsetInSlot(range)
      for (let index = bufferFrom(source, begin); index < starts.length; index++) {
        const start = starts[index] as number
        if (start >= end) break
        const from = Math.max(begin, start)
        const until = Math.min(end, start + (bytes[index] as number))
        if (until <= from) continue
        const remote = remotes[owner]?.[index]
        if (remote === undefined) throw new Error(`owner ${owner} has no buffer ${index} to read`)
        const at = { remoteOffset: from - start, bufferOffset: to + from - begin }
        pieces.push({ remote, ...at, bytes: until - from })
      }
    }
    return pieces
  }

  isThere(chunk: number): boolean {
    const { progress, turn } = this.#fetcher(chunk)
    return Atomics.load(progress, PROGRESS_FETCHED) > turn
  }

  /** Where a chunk lies that is there. */
  slotOf(chunk: number): { readonly buffer: Handle; readonly offset: number } {
    const { progress, turn } = this.#fetcher(chunk)
    const buffer = Atomics.load(progress, PROGRESS_SLOTS) >>> 0
    return { buffer, offset: (turn % SLOTS) * this.#target.plan.slotBytes }
  }

  #fetcher(chunk: number) {
    const { length } = this.#sharers
    const { progress } = this.#sharers[chunk % length] as Sharer
    return { progress, turn: Math.floor(chunk / length) }
  }

  /** All that this rank fetches is there. */
  get done(): boolean {
    return this.#fetched === this.#ownCount
  }

  /** This rank needs chunks `[0, chunks)` no more. */
  leave(chunks: number): void {
    this.#tell(PROGRESS_COPIED, chunks)
  }

  #tell(index: number, value: number): void {
    Atomics.store(this.#own.progress, index, value)
    for (const sharer of this.#sharers) {
      if (sharer !== this.#own) this.#target.library.signalRaise(sharer.signal, 0)
    }
  }

  /** Waits for reads that go on: those of a failed update are ended first, see `RemoteSources.drop`. */
  close(): void {
    for (const read of this.#reads.splice(0)) this.#target.library.p2p.readDestroy(read)
  }
}
