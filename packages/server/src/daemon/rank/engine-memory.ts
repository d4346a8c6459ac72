import { CkptError } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { DeviceWork } from './device-work.ts'

/** Most allocations take 0.1 ms. A worker connects 4 ms after its engine was asked. */
const SLOW_OPEN_MS = 1

/** One allocation of an engine worker. */
export interface EngineAllocation {
  /** What it is opened with, hex. */
  readonly handle: string
  readonly bytes: number
}

/**
 * Sizes of allocations that took long to open the last time, as one of 1.2 GB does that is no multiple of 2 MiB: 5 ms of an H200.
 * How long goes by the size.
 */
export class SlowSizes {
  readonly #sizes = new Set<number>()

  has(bytes: number): boolean {
    return this.#sizes.has(bytes)
  }

  took(bytes: number, ms: number): void {
    if (ms > SLOW_OPEN_MS) this.#sizes.add(bytes)
    else this.#sizes.delete(bytes)
  }
}

/**
 * The engine's own memory, opened for one direct update, with the streams that write it. Opening 16 GB in 56 allocations takes 8 ms
 * of an H200.
 */
export class EngineMemory {
  /** It is the engine's, and counted there. */
  readonly bytes = 0
  readonly stream: Handle
  /** Of copies of rows, beside the others. */
  readonly rowsStream: Handle
  readonly #library: Library
  readonly #device: number
  readonly #work: DeviceWork
  readonly #allocations: readonly EngineAllocation[]
  readonly #slow: SlowSizes
  readonly #opened = new Map<number, Handle>()
  /** Of copies out of other engines' memory; null: there are none. */
  readonly #peerStream: Handle | null
  /** In which they are opened: those that take long last. */
  readonly #order: readonly number[]
  /** All before it in the order are open. */
  #next = 0
  #closing = false

  /**
   * With nothing open.
   *
   * @param sharers whether it can take from other engines' memory
   */
  constructor(
    library: Library,
    device: number,
    allocations: readonly EngineAllocation[],
    slow = new SlowSizes(),
    sharers = false,
  ) {
    this.#library = library
    this.#device = device
    this.#work = new DeviceWork(library, device)
    this.#allocations = allocations
    this.#slow = slow
    const isSlow = (index: number) => Number(slow.has(allocations[index]?.bytes ?? 0))
    this.#order = [...allocations.keys()].sort((a, b) => isSlow(a) - isSlow(b) || a - b)
    try {
      this.stream = this.#work.stream()
      this.rowsStream = this.#work.stream()
      this.#peerStream = sharers ? this.#work.stream() : null
    } catch (error) {
      this.#work.free()
      throw error
    }
  }

  get isOpen(): boolean {
    return this.#opened.size === this.#allocations.length
  }

  /** Whether {@link EngineMemory.openNext} takes long, as far as is known. */
  get nextIsSlow(): boolean {
    const allocation = this.#nextClosed()
    return allocation !== null && this.#slow.has(this.#allocations[allocation]?.bytes ?? 0)
  }

  /** One more allocation. @throws CkptError what the device says of it */
  openNext(): void {
    const allocation = this.#nextClosed()
    if (allocation !== null) this.memory(allocation)
  }

  #nextClosed(): number | null {
    while (this.#opened.has(this.#order[this.#next] ?? -1)) this.#next++
    return this.#order[this.#next] ?? null
  }

  has(allocation: number): boolean {
    return this.#opened.has(allocation)
  }

  /** One of those that are open, when nothing writes them any more; false: none is left. @throws CkptError what the device says of it */
  closeNext(): boolean {
    this.#closing = true
    const [first] = this.#opened
    if (first === undefined) return false
    const [allocation, memory] = first
    this.#opened.delete(allocation)
    this.#library.memoryFree(memory)
    return true
  }

  /** Of copies out of other engines' memory. */
  get peerStream(): Handle {
    if (this.#peerStream === null) throw new Error('nothing is taken from other engines')
    return this.#peerStream
  }

  /** All that write it. */
  get streams(): readonly Handle[] {
    const own = [this.stream, this.rowsStream]
    return this.#peerStream === null ? own : [...own, this.#peerStream]
  }

  /** The rest. @throws CkptError what the device says of an allocation */
  open(): void {
    while (!this.isOpen) this.openNext()
  }

  /** Handle of an allocation, by its index; opens it. @throws CkptError what the device says of it */
  memory(allocation: number): Handle {
    const opened = this.#opened.get(allocation)
    if (opened !== undefined) return opened
    const closed = this.#allocations[allocation]
    if (closed === undefined || this.#closing)
      throw new Error(`no allocation ${allocation} to open`)
    const sinceMs = clockMs()
    try {
      const memory = this.openAllocation(this.#library, this.#device, closed)
      this.#slow.took(closed.bytes, clockMs() - sinceMs)
      this.#opened.set(allocation, memory)
      return memory
    } catch (error) {
      const { code, message } = CkptError.wrap(error)
      throw new CkptError(code, `the engine's memory cannot be opened: ${message}`)
    }
  }

  /** Freed again with `memoryFree`. @throws CkptError what the device says of it */
  protected openAllocation(
    library: Library,
    device: number,
    { handle, bytes }: EngineAllocation,
  ): Handle {
    return library.memoryOpen(device, Uint8Array.fromHex(handle), bytes)
  }

  /** See {@link DeviceWork.event}. */
  event(): Handle {
    return this.#work.event()
  }

  reuse(event: Handle): void {
    this.#work.reuse(event)
  }

  /** Host memory that its copies read, freed with it. */
  own(buffer: Handle): void {
    this.#work.onFree(() => this.#library.bufferFree(buffer))
  }

  /** Waits until nothing writes it any more; false when that takes longer. Blocks. */
  settle(timeoutMs: number): boolean {
    return this.#work.settle(timeoutMs)
  }

  /** Closes what is open: a dead engine's memory would be held otherwise. {@link EngineMemory.settle} first. */
  free(): void {
    let first: unknown = null
    for (let more = true; more; ) {
      try {
        more = this.closeNext()
      } catch (error) {
        first ??= error
      }
    }
    const ofWork = this.#work.free()
    const failure = first ?? ofWork
    if (failure !== null) throw failure
  }
}
