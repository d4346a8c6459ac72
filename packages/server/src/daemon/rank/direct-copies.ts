import type { DirectCopy, DirectPlan } from '@ckpt/core'
import type { H2dPiece, Handle, Library } from '@ckpt/cuda'
import { bufferAt } from './source-buffer.ts'
import { CopyQueue, type QueueCalls } from './copy-queue.ts'
import type { EngineMemory } from './engine-memory.ts'
import type { SourceLayout } from './messages.ts'
import type { CopyOrder } from './source-reads.ts'

/** What is called of the native library. */
export type CopyCalls = QueueCalls & Pick<Library, 'bufferGather'>

export interface DirectTarget {
  readonly library: CopyCalls
  readonly signal: Handle
  readonly plan: DirectPlan
  readonly layout: SourceLayout
  /** Per owner: native handles of its source buffers. */
  readonly buffers: readonly Uint32Array[]
  /** Pinned memory of at least so many bytes, for this update alone. */
  staging(bytes: number): Handle
  /** These copies of the plan are complete. */
  copied?(first: number, end: number): void
}

/** Enqueues the copies of a direct update on one rank out of its own host's memory. Nothing here waits. */
export class DirectCopies {
  readonly queue: CopyQueue
  readonly #target: DirectTarget
  readonly #memory: EngineMemory
  /** Groups that have not been enqueued. */
  readonly #left: number[]
  #complete = 0

  constructor(target: DirectTarget, memory: EngineMemory) {
    this.#target = target
    this.#memory = memory
    this.#left = [...target.plan.groups.keys()]
    this.queue = new CopyQueue(target.library, target.signal, memory)
  }

  get complete(): number {
    return this.#complete
  }

  get done(): boolean {
    return this.#complete === groupCount(this.#target.plan)
  }

  /** Enqueues what is readable, of {@link copyOrder}, as far as that is not too much at a time. */
  enqueue(readable: number, nowMs: number): void {
    while (this.queue.hasRoom) {
      const next = this.#next(readable)
      if (next === null) return
      const [group] = this.#left.splice(next, 1)
      const copies = this.#copiesOf(group as number)
      const pieces = copies === null ? this.#gathered() : copies.map((copy) => this.#pieceOf(copy))
      this.queue.add(pieces, nowMs, () => this.#completed(group as number))
    }
  }

  /**
   * Which of those that are left: the first whose memory is open, so that the device has work while more is opened, else the first.
   * Null: nothing of them is readable.
   */
  #next(readable: number): number | null {
    const { plan, layout } = this.#target
    const end = (group: number) => plan.groups[group + 1] ?? copyOrder(plan, layout).count
    for (const [index, group] of this.#left.entries()) {
      if (readable < end(group)) break
      const copies = this.#copiesOf(group)
      // what is gathered comes last, while the others are on their way
      if (copies === null) break
      if (copies.every(({ allocation }) => this.#memory.has(allocation))) return index
    }
    const [first] = this.#left
    return first === undefined || readable < end(first) ? null : 0
  }

  #completed(group: number): void {
    this.#complete++
    const { plan, copied } = this.#target
    const end = plan.groups[group + 1]
    if (end !== undefined) copied?.(plan.groups[group] as number, end)
  }

  /** Null: what is gathered. */
  #copiesOf(group: number): readonly DirectCopy[] | null {
    const { groups, copies } = this.#target.plan
    const end = groups[group + 1]
    return end === undefined ? null : copies.slice(groups[group], end)
  }

  #pieceOf(copy: DirectCopy): H2dPiece {
    const { owner, source, destination, destinationPitch, sourcePitch, width, height } = copy
    const { buffer, offset } = this.#place(owner, source, (height - 1) * sourcePitch + width)
    return {
      memory: this.#memory.memory(copy.allocation),
      memoryOffset: destination,
      memoryPitch: destinationPitch,
      buffer,
      bufferOffset: offset,
      bufferPitch: sourcePitch,
      width,
      height,
    }
  }

  #place(owner: number, source: number, bytes: number): { buffer: Handle; offset: number } {
    const { layout, buffers } = this.#target
    const space = layout.sources[owner]
    if (space === undefined) throw new Error(`there is no owner ${owner}`)
    const index = bufferAt(space, source, bytes)
    const buffer = buffers[owner]?.[index]
    if (buffer === undefined) throw new Error(`owner ${owner} has no buffer ${index}`)
    return { buffer, offset: source - (space.starts[index] as number) }
  }

  /** Gathers while the last groups are still on their way. */
  #gathered(): H2dPiece[] {
    const { library, plan } = this.#target
    if (plan.staging.bytes === 0) return []
    const gathered = this.#target.staging(plan.staging.bytes)
    const pieces = plan.staging.pieces.map((piece) => {
      const { owner, source, sourcePitch, offset: dstOffset, width, height } = piece
      const bytes = (height - 1) * sourcePitch + width
      const { buffer, offset } = this.#place(owner, source, bytes)
      const from = { srcBuffer: buffer, srcOffset: offset, srcPitch: sourcePitch }
      return { ...from, dstOffset, dstPitch: width, width, height }
    })
    library.bufferGather(gathered, pieces)
    return plan.staging.copies.map(({ offset, allocation, destination, bytes }) => {
      const memory = this.#memory.memory(allocation)
      const to = { memory, memoryOffset: destination, memoryPitch: bytes }
      const from = { buffer: gathered, bufferOffset: offset, bufferPitch: bytes }
      return { ...to, ...from, width: bytes, height: 1 }
    })
  }

  /** @throws NativeError what failed in a copy */
  takeComplete(nowMs: number): void {
    this.queue.takeComplete(nowMs)
  }
}

/** Of copies, and what is gathered as one more. */
export function groupCount({ groups }: DirectPlan): number {
  return groups.length
}

/** The copies, and then what is gathered, for which all owners' bytes must be there. */
export function copyOrder({ copies }: DirectPlan, { sources }: SourceLayout): CopyOrder {
  return {
    count: copies.length + sources.length,
    source(part) {
      const copy = copies[part]
      if (copy === undefined) {
        return { owner: part - copies.length, end: Number.POSITIVE_INFINITY }
      }
      const { owner, source, sourcePitch, width, height } = copy
      return { owner, end: source + (height - 1) * sourcePitch + width }
    },
  }
}
