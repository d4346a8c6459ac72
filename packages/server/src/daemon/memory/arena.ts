import { CkptError } from '@ckpt/core/api/errors'
import { BUFFER_SHARED, type Handle, type Library } from '@ckpt/cuda'
import { HostMemoryError } from './host-memory-error.ts'
import { NodeBytes, turnsPerRound } from './nodes.ts'
import { BUFFER_BYTES_MAX, roundToGranule, sizeClass } from './size-class.ts'
import { turn } from './turn.ts'

export interface ArenaBuffer {
  readonly buffer: Handle
  readonly bytes: number
  /** The NUMA node that its memory was asked from; -1: nobody asked. */
  readonly node: number
}

/** Memory of one part; `fresh`: buffers that did not exist before. */
export interface Taking {
  readonly buffers: readonly ArenaBuffer[]
  readonly fresh: ReadonlySet<Handle>
}

interface PooledShared extends ArenaBuffer {
  readonly name: string
}

/** A free buffer is used when at most a quarter of the wanted bytes is wasted. */
const FIT_FACTOR = 1.25
/** A free buffer smaller than this part of what is still wanted is left alone: it would make too many segments. */
const PIECE_DIVISOR = 8

/**
 * Pinned host memory in buffers of size classes. A taking of any size is covered by whatever free buffers fit, one after
 * another, so memory is used again by versions of other shapes. Memory that nothing uses stays pinned for the next
 * version, but never more than makes the most bytes that were in use at one time: replacing for ever does not grow.
 *
 * With NUMA nodes each buffer of a taking is on the node that has the fewest bytes of it per rank so far, as far as the buffers
 * that are used again allow. Shared buffers and mapped files are where the trainer or the kernel has put them.
 */
export class Arena {
  readonly #library: Library
  readonly #budgetBytes: number
  readonly #rankNodes: readonly number[]
  readonly #beforeFree: (buffer: Handle) => void
  /** So small that the bytes in a ring of 1 GiB are of every node: then the links of all nodes are in use. */
  readonly #bufferBytesMax: number
  #free: ArenaBuffer[] = []
  #pooled: PooledShared[] = []
  #pinnedBytes = 0
  #usedBytes = 0
  #peakBytes = 0

  /** `rankNodes`: the NUMA node of each rank, which buffers are taken from in turn; empty: the kernel's choice. */
  constructor(
    library: Library,
    budgetBytes: number,
    rankNodes: readonly number[] = [],
    beforeFree: (buffer: Handle) => void = () => {},
  ) {
    this.#library = library
    this.#beforeFree = beforeFree
    this.#budgetBytes = budgetBytes
    this.#rankNodes = rankNodes
    this.#bufferBytesMax = sizeClass(BUFFER_BYTES_MAX / turnsPerRound(rankNodes))
  }

  /** Everything that is pinned: used, kept for reuse, shared with trainers and mapped in place. */
  get pinnedBytes(): number {
    return this.#pinnedBytes
  }

  get usedBytes(): number {
    return this.#usedBytes
  }

  /**
   * Buffers of at least `bytes` bytes together, in the order in which they are to be used.
   *
   * @throws HostMemoryError when the budget or the machine does not hold them; then nothing is taken
   */
  async take(bytes: number): Promise<Taking> {
    const nodeBytes = new NodeBytes(this.#rankNodes)
    const reused = this.#reuse(bytes, nodeBytes)
    const missing = bytes - sum(reused)
    const sizes = this.#sizes(missing)
    try {
      this.#reserve(sizes.reduce((total, size) => total + size, 0))
    } catch (error) {
      this.#putBack(reused)
      throw error
    }
    const fresh: ArenaBuffer[] = []
    try {
      for (const size of sizes) {
        const made = this.#allocateOn(nodeBytes.next(), size)
        nodeBytes.add(made)
        fresh.push(made)
        await turn()
      }
    } catch (error) {
      const unmade = sizes.slice(fresh.length).reduce((total, size) => total + size, 0)
      this.#pinnedBytes -= unmade
      this.#usedBytes -= unmade
      this.#freeUsed(fresh)
      this.#putBack(reused)
      throw error
    }
    return { buffers: [...reused, ...fresh], fresh: new Set(fresh.map(({ buffer }) => buffer)) }
  }

  /** Undoes a taking: what it made anew is freed, the rest is free again. */
  undo(taking: Taking): void {
    this.#freeUsed(taking.buffers.filter(({ buffer }) => taking.fresh.has(buffer)))
    this.#putBack(taking.buffers.filter(({ buffer }) => !taking.fresh.has(buffer)))
  }

  /** The part is dropped: its memory stays pinned for the next one. */
  giveBack(buffers: readonly ArenaBuffer[]): void {
    this.#putBack(buffers)
  }

  /** @throws HostMemoryError when the budget does not have `bytes` free: said before anything is taken */
  expect(bytes: number): void {
    const short = this.#usedBytes + bytes - this.#budgetBytes
    if (short <= 0) return
    throw new HostMemoryError(
      `${bytes} bytes of host memory are wanted, ${short} more than the budget of ${this.#budgetBytes} has free`,
      bytes,
      short,
    )
  }

  /** Counts a file that is mapped in place. @throws HostMemoryError */
  addMapped(bytes: number): void {
    this.#reserve(bytes)
  }

  removeMapped(bytes: number): void {
    this.#pinnedBytes -= bytes
    this.#usedBytes -= bytes
  }

  /**
   * Shared buffers, one for each of `bytes`, for the trainer that writes `name`; those that it had before are used again
   * (it has them mapped, so nobody else may get them).
   */
  async share(name: string, bytes: readonly number[]): Promise<ArenaBuffer[]> {
    const shared = bytes.map((size) => this.#reuseShared(name, size))
    const missing = bytes.filter((_, index) => shared[index] === null).map(roundToGranule)
    const fresh: ArenaBuffer[] = []
    // what the trainer left and does not fit now would never be used again
    if (shared.includes(null)) this.#releasePooled(name)
    try {
      // of all of them: whoever makes room must know how much
      this.expect(missing.reduce((total, size) => total + size, 0))
      for (const [index, size] of bytes.entries()) {
        if (shared[index] !== null) continue
        const made = this.#allocateShared(roundToGranule(size))
        fresh.push(made)
        shared[index] = made
        await turn()
      }
    } catch (error) {
      this.#freeUsed(fresh)
      this.giveBackShared(
        name,
        shared.filter((had): had is ArenaBuffer => had !== null && !fresh.includes(had)),
      )
      throw error
    }
    return shared as ArenaBuffer[]
  }

  giveBackShared(name: string, buffers: readonly ArenaBuffer[]): void {
    for (const { buffer, bytes, node } of buffers) this.#pooled.push({ name, buffer, bytes, node })
    this.#usedBytes -= sum(buffers)
  }

  /** Frees shared buffers that are in use by no part. */
  unshare(buffers: readonly ArenaBuffer[]): void {
    this.#freeUsed(buffers)
  }

  /** Gives everything that nothing uses back to the system, and the shared buffers left by `name` (null: by all). */
  trim(name: string | null): void {
    for (const kept of this.#free.splice(0)) this.#release(kept)
    this.#releasePooled(name)
  }

  #releasePooled(name: string | null): void {
    for (const pooled of this.#pooled.splice(0)) {
      if (name === null || pooled.name === name) this.#release(pooled)
      else this.#pooled.push(pooled)
    }
  }

  #sizes(bytes: number): number[] {
    if (bytes <= 0) return []
    const sizes: number[] = []
    let rest = bytes
    for (; rest > this.#bufferBytesMax; rest -= this.#bufferBytesMax)
      sizes.push(this.#bufferBytesMax)
    const whole = sizes.length * this.#bufferBytesMax
    // near the budget the class's slack is saved
    const slackFits = this.#usedBytes + whole + sizeClass(rest) <= this.#budgetBytes
    sizes.push(slackFits ? sizeClass(rest) : roundToGranule(rest))
    return sizes
  }

  #reuse(bytes: number, nodeBytes: NodeBytes): ArenaBuffer[] {
    const chosen: ArenaBuffer[] = []
    for (let rest = bytes; rest > 0; ) {
      const index = this.#bestFree(rest, nodeBytes)
      if (index < 0) break
      const [found] = this.#free.splice(index, 1)
      chosen.push(found!)
      nodeBytes.add(found!)
      rest -= found!.bytes
    }
    this.#usedBytes += sum(chosen)
    return chosen
  }

  /** The smallest free buffer that holds `bytes` without much waste, else the largest that is full; of equals by its node. */
  #bestFree(bytes: number, nodeBytes: NodeBytes): number {
    let best = -1
    let bestBytes = 0
    let bestNode = -1
    for (const [index, { bytes: size, node }] of this.#free.entries()) {
      if (size > Math.max(bytes * FIT_FACTOR, roundToGranule(bytes))) continue
      if (size < bytes / PIECE_DIVISOR && size < this.#bufferBytesMax) continue
      const better =
        best < 0 ||
        (bestBytes >= bytes ? size >= bytes && size < bestBytes : size > bestBytes) ||
        (size === bestBytes && nodeBytes.compare(node, bestNode) < 0)
      if (better) [best, bestBytes, bestNode] = [index, size, node]
    }
    return best
  }

  /** Makes room for `bytes` more and counts them as used. */
  #reserve(bytes: number): void {
    this.expect(bytes)
    this.#peakBytes = Math.max(this.#peakBytes, this.#usedBytes + bytes)
    for (;;) {
      const excess = this.#pinnedBytes + bytes - this.#peakBytes
      if (excess <= 0 || !this.#evict(excess)) break
    }
    this.#pinnedBytes += bytes
    this.#usedBytes += bytes
  }

  /** Gives an unused buffer back to the system: the smallest of at least `bytes`, else the largest. False: none is left. */
  #evict(bytes: number): boolean {
    const list: ArenaBuffer[] = this.#free.length > 0 ? this.#free : this.#pooled
    let chosen = 0
    for (const [index, { bytes: size }] of list.entries()) {
      const chosenBytes = list[chosen]!.bytes
      const better = chosenBytes >= bytes ? size >= bytes && size < chosenBytes : size > chosenBytes
      if (better) chosen = index
    }
    const [victim] = list.splice(chosen, 1)
    if (victim === undefined) return false
    this.#release(victim)
    return true
  }

  #allocateOn(node: number, bytes: number): ArenaBuffer {
    if (node < 0) {
      const buffer = this.#allocate(bytes, () => this.#library.bufferAlloc(bytes, 0))
      return { buffer, bytes, node }
    }
    const near = this.#allocate(bytes, () => this.#library.bufferAllocNear(bytes, node))
    return { buffer: near.buffer, bytes, node: near.placed ? node : -1 }
  }

  /** Calls `allocate` again when unused memory can be given back for it. @throws HostMemoryError */
  #allocate<T>(bytes: number, allocate: () => T): T {
    try {
      return allocate()
    } catch (error) {
      if (!(error instanceof CkptError) || error.code !== 'host_memory_exhausted') throw error
      if (this.#free.length === 0 && this.#pooled.length === 0) {
        throw new HostMemoryError(error.message, bytes, bytes)
      }
      this.trim(null)
    }
    try {
      return allocate()
    } catch (error) {
      if (!(error instanceof CkptError) || error.code !== 'host_memory_exhausted') throw error
      throw new HostMemoryError(error.message, bytes, bytes)
    }
  }

  #reuseShared(name: string, bytes: number): ArenaBuffer | null {
    let best = -1
    for (const [index, pooled] of this.#pooled.entries()) {
      if (pooled.name !== name || pooled.bytes < bytes) continue
      if (pooled.bytes > Math.max(bytes * FIT_FACTOR, roundToGranule(bytes))) continue
      if (best < 0 || pooled.bytes < this.#pooled[best]!.bytes) best = index
    }
    if (best < 0) return null
    const [found] = this.#pooled.splice(best, 1)
    this.#usedBytes += found!.bytes
    return { buffer: found!.buffer, bytes: found!.bytes, node: found!.node }
  }

  #allocateShared(bytes: number): ArenaBuffer {
    this.#reserve(bytes)
    try {
      const buffer = this.#allocate(bytes, () => this.#library.bufferAlloc(bytes, BUFFER_SHARED))
      return { buffer, bytes, node: -1 }
    } catch (error) {
      this.removeMapped(bytes)
      throw error
    }
  }

  #putBack(buffers: readonly ArenaBuffer[]): void {
    this.#free.push(...buffers)
    this.#usedBytes -= sum(buffers)
  }

  #freeUsed(buffers: readonly ArenaBuffer[]): void {
    for (const used of buffers) {
      this.#usedBytes -= used.bytes
      this.#release(used)
    }
  }

  #release({ buffer, bytes }: ArenaBuffer): void {
    this.#pinnedBytes -= bytes
    this.#beforeFree(buffer)
    this.#library.bufferFree(buffer)
  }
}

function sum(buffers: readonly ArenaBuffer[]): number {
  return buffers.reduce((total, { bytes }) => total + bytes, 0)
}
