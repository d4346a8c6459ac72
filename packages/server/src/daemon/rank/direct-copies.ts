import type { DirectCopy, DirectPlan } from '@ckpt/core'
import type { H2dPiece, Handle, Library } from '@ckpt/cuda'
import { bufferAt } from './copies.ts'
import type { EngineMemory } from './engine-memory.ts'
import { BusyIntervals } from './intervals.ts'
import type { SourceLayout } from './messages.ts'
import type { CopyOrder } from './source-reads.ts'

/**
 * Groups of copies on their way at a time: few enough to stop soon, 7 ms, enough for the device not to wait while an allocation is
 * opened, which takes up to 5 ms.
 */
const IN_FLIGHT_MAX = 6

/** What is called of the native library. */
export type CopyCalls = Pick<
  Library,
  'copyH2dBatch' | 'bufferGather' | 'eventRecord' | 'eventNotify' | 'eventQuery'
>

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

/** Enqueues the copies of a direct update on one rank. Nothing here waits. */
export class DirectCopies {
  readonly h2d = new BusyIntervals()
  readonly #target: DirectTarget
  readonly #memory: EngineMemory
  /** Of each group those that are not complete, in the order in which they complete. */
  readonly #inFlight: Handle[][] = []
  #enqueued = 0
  #complete = 0

  constructor(target: DirectTarget, memory: EngineMemory) {
    this.#target = target
    this.#memory = memory
  }

  get complete(): number {
    return this.#complete
  }

  get done(): boolean {
    return this.#complete === groupCount(this.#target.plan)
  }

  /** Enqueues what is readable, of {@link copyOrder}, as far as that is not too much at a time. */
  enqueue(readable: number, nowMs: number): void {
    const { groups, copies, staging } = this.#target.plan
    while (
      this.#inFlight.length < IN_FLIGHT_MAX &&
      this.#enqueued < groupCount(this.#target.plan)
    ) {
      const first = groups[this.#enqueued] as number
      const end = groups[this.#enqueued + 1]
      if (end !== undefined) {
        if (readable < end) return
        this.#copy(copies.slice(first, end))
      } else {
        if (readable < copyOrder(this.#target.plan, this.#target.layout).count) return
        if (staging.bytes > 0) this.#copyGathered()
        this.#record([this.#memory.stream])
      }
      this.#enqueued++
      this.h2d.begin(nowMs)
    }
  }

  #record(streams: readonly Handle[]): void {
    const { library, signal } = this.#target
    const events = streams.map((stream) => {
      const event = this.#memory.event()
      library.eventRecord(event, stream)
      library.eventNotify(event, signal)
      return event
    })
    this.#inFlight.push(events)
  }

  /**
   * The device goes from one to the next without a pause. Rows have a stream of their own: narrow ones do not fill the wire, other
   * copies beside them do.
   */
  #copy(copies: readonly DirectCopy[]): void {
    const [single, rows]: [H2dPiece[], H2dPiece[]] = [[], []]
    for (const copy of copies) {
      const { owner, source, destination, destinationPitch, sourcePitch, width, height } = copy
      const bytes = (height - 1) * sourcePitch + width
      const { buffer, offset } = this.#place(owner, source, bytes)
      const piece = {
        memory: this.#memory.memory(copy.allocation),
        memoryOffset: destination,
        memoryPitch: destinationPitch,
        buffer,
        bufferOffset: offset,
        bufferPitch: sourcePitch,
        width,
        height,
      }
      if (height === 1) single.push(piece)
      else rows.push(piece)
    }
    const { stream, rowsStream } = this.#memory
    const { library } = this.#target
    const batches = [
      { on: stream, pieces: single },
      { on: rowsStream, pieces: rows },
    ].filter(({ pieces }) => pieces.length > 0)
    for (const { on, pieces } of batches) library.copyH2dBatch(on, pieces)
    this.#record(batches.map(({ on }) => on))
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

  /** While the last groups are still on their way. */
  #copyGathered(): void {
    const { library, plan } = this.#target
    const gathered = this.#target.staging(plan.staging.bytes)
    const pieces = plan.staging.pieces.map((piece) => {
      const { owner, source, sourcePitch, offset: dstOffset, width, height } = piece
      const bytes = (height - 1) * sourcePitch + width
      const { buffer, offset } = this.#place(owner, source, bytes)
      const from = { srcBuffer: buffer, srcOffset: offset, srcPitch: sourcePitch }
      return { ...from, dstOffset, dstPitch: width, width, height }
    })
    library.bufferGather(gathered, pieces)
    const copies = plan.staging.copies.map(({ offset, allocation, destination, bytes }) => {
      const memory = this.#memory.memory(allocation)
      const to = { memory, memoryOffset: destination, memoryPitch: bytes }
      const from = { buffer: gathered, bufferOffset: offset, bufferPitch: bytes }
      return { ...to, ...from, width: bytes, height: 1 }
    })
    library.copyH2dBatch(this.#memory.stream, copies)
  }

  /** @throws NativeError what failed in a copy */
  takeComplete(nowMs: number): void {
    const { library } = this.#target
    for (let events = this.#inFlight[0]; events !== undefined; events = this.#inFlight[0]) {
      for (let event = events[0]; event !== undefined; event = events[0]) {
        if (!library.eventQuery(event)) return
        events.shift()
        this.#memory.reuse(event)
      }
      this.#inFlight.shift()
      this.h2d.end(nowMs)
      this.#complete++
    }
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
