import type { DirectCopy, DirectPlan } from '@ckpt/core'
import type { H2dPiece, Handle, Library } from '@ckpt/cuda'
import { bufferAt } from './copies.ts'
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
}

/** Enqueues the copies of a direct update on one rank out of its own host's memory. Nothing here waits. */
export class DirectCopies {
  readonly queue: CopyQueue
  readonly #target: DirectTarget
  readonly #memory: EngineMemory
  #enqueued = 0
  #complete = 0

  constructor(target: DirectTarget, memory: EngineMemory) {
    this.#target = target
    this.#memory = memory
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
    const { plan, layout } = this.#target
    const { groups, copies } = plan
    while (this.queue.hasRoom && this.#enqueued < groupCount(plan)) {
      const first = groups[this.#enqueued] as number
      const end = groups[this.#enqueued + 1]
      if (readable < (end ?? copyOrder(plan, layout).count)) return
      const pieces =
        end === undefined
          ? this.#gathered()
          : copies.slice(first, end).map((copy) => this.#pieceOf(copy))
      this.queue.add(pieces, nowMs, () => this.#complete++)
      this.#enqueued++
    }
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
