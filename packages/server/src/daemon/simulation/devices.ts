import {
  type CopyPiece,
  type GatherPiece,
  type H2dPiece,
  NativeError,
  SIGNAL_ABORT,
  STATUS_ERR_HANDLE,
} from '@ckpt/cuda'
import { STATUS_ERR_DEVICE } from '@ckpt/cuda/generated'
import { HardwareQueues } from './hardware-queues.ts'
import { HostBuffers } from './host-buffers.ts'
import { ipcHandle, memoryOf } from './ipc-handle.ts'
import type { Random } from './random.ts'
import { RemoteReads } from './remote-reads.ts'
import type { DeviceSpeed, SharedDevices } from './shared-devices.ts'
import { EventRecord, Stream, TimedWork } from './streams.ts'
import type { Life, SimulatedTime } from './time.ts'
import { type Extent, TracedMemory } from './traced-memory.ts'
import type { Witness } from './violation.ts'

const DEVICE_BYTES = 2 ** 30
/** Of a copy out of device memory. */
const NO_BUFFER = 0

interface Signal {
  bits: number
  wake: () => void
}

export interface DeviceMemory {
  readonly ring: TracedMemory
  readonly device: number
  /** Of an engine's memory, see `SharedAllocation`. */
  readonly write: (() => () => void) | null
}

/** Rows of what is copied. */
interface Rows {
  readonly from: number
  readonly fromPitch: number
  readonly to: number
  readonly toPitch: number
  readonly width: number
  readonly height: number
}

/** What a copy reads. */
interface CopySource {
  readonly handle: number
  content(at: number, bytes: number): Extent[]
}

/**
 * Signals, memory, streams and copies of one process, over simulated time: streams that really are asynchronous, memory that knows
 * what lies in it. Handles that are used after their end are told of.
 */
export class SimulatedDevices {
  readonly shared: SharedDevices
  /** The device error that the next copies have; null: they are good. */
  copyFault: ((buffer: number) => boolean) | null = null
  /** A rank is in a run, or opens one: nobody else may enqueue anything. */
  inRun = false
  protected readonly life: Life
  readonly #time: SimulatedTime
  readonly #random: Random
  readonly #speed: DeviceSpeed
  protected readonly witness: Witness
  readonly #signals = new Map<number, Signal>()
  protected readonly memories = new Map<number, DeviceMemory>()
  protected readonly streams = new Map<number, Stream>()
  readonly #events = new Map<number, { record: EventRecord }>()
  readonly #used = new Map<number, number>()
  readonly #buffers: HostBuffers
  readonly p2p: RemoteReads

  /** By device that several ranks of this process have. */
  protected readonly queues: ReadonlyMap<number, HardwareQueues>

  /**
   * @param shared what the processes of a simulation have together
   * @param devices of each rank of this process
   */
  constructor(shared: SharedDevices, life: Life, devices: readonly number[]) {
    const several = devices.filter((device, rank) => devices.indexOf(device) !== rank)
    this.queues = new Map(several.map((device) => [device, new HardwareQueues()]))
    const { time, random, speed, witness } = shared
    this.shared = shared
    this.life = life
    this.#time = time
    this.#random = random
    this.#speed = speed
    this.witness = witness
    this.#buffers = new HostBuffers(shared, (buffer) => this.reads(buffer))
    const copyH2d = (...copy: Parameters<SimulatedDevices['copyH2d']>) => this.copyH2d(...copy)
    const raise = (signal: number) => this.signalRaise(signal, 0)
    this.p2p = new RemoteReads(shared, life, this.#buffers, copyH2d, raise)
  }

  /** Memory, streams, events and reads that were not given back. */
  get live(): { memories: number; streams: number; events: number; reads: number } {
    return {
      reads: this.p2p.reads,
      memories: this.memories.size,
      streams: this.streams.size,
      events: this.#events.size,
    }
  }

  /** Whether a copy out of this buffer is under way or to come. */
  reads(buffer: number): boolean {
    return [...this.streams.values()].some((stream) => stream.uses(buffer))
  }

  protected add<T>(table: Map<number, T>, value: T): number {
    const handle = this.shared.handle()
    table.set(handle, value)
    return handle
  }

  protected of<T>(table: Map<number, T>, handle: number, symbol: string): T {
    const value = table.get(handle)
    if (value === undefined) {
      this.witness.violated(`${symbol}: handle ${handle} has been given back`)
      throw new NativeError(symbol, STATUS_ERR_HANDLE, `${symbol}: no handle ${handle}`)
    }
    return value
  }

  get #extraMs(): number {
    return this.#random.between(0, this.#speed.extraMs)
  }

  signalCreate(): number {
    return this.add(this.#signals, { bits: 0, wake: () => {} })
  }

  onSignal(signal: number, wake: () => void): void {
    this.of(this.#signals, signal, 'onSignal').wake = wake
  }

  signalDestroy(signal: number): void {
    this.of(this.#signals, signal, 'ckpt_signal_destroy')
    this.#signals.delete(signal)
  }

  signalFd(signal: number): number {
    return signal
  }

  signalRaise(signal: number, bits: number): void {
    const one = this.#signals.get(signal)
    // of a rank whose thread has ended
    if (one === undefined) return
    one.bits |= bits
    one.wake()
  }

  signalTake(signal: number): number {
    return this.of(this.#signals, signal, 'ckpt_signal_take').bits
  }

  signalReset(signal: number): void {
    this.of(this.#signals, signal, 'ckpt_signal_reset').bits = 0
  }

  aborts(signal: number): boolean {
    return (this.signalTake(signal) & SIGNAL_ABORT) !== 0
  }

  deviceMemory(device: number): { freeBytes: number; totalBytes: number } {
    const used = this.#used.get(device) ?? 0
    return { freeBytes: DEVICE_BYTES - used, totalBytes: DEVICE_BYTES }
  }

  memoryAlloc(device: number, bytes: number): number {
    this.#used.set(device, (this.#used.get(device) ?? 0) + bytes)
    return this.add(this.memories, { ring: new TracedMemory(bytes), device, write: null })
  }

  memoryFree(memory: number): void {
    const { ring, device, write } = this.of(this.memories, memory, 'ckpt_memory_free')
    const what = write === null ? 'a ring was freed' : "an engine's memory was closed"
    for (const stream of this.streams.values()) {
      if (stream.uses(memory)) this.witness.violated(`${what} that is being written`)
    }
    this.memories.delete(memory)
    if (write !== null) return
    if (ring.readers.size > 0) this.witness.violated('a ring was freed that a worker reads')
    ring.freed = true
    this.#used.set(device, (this.#used.get(device) ?? 0) - ring.bytes)
  }

  /** Memory of an engine. */
  memoryOpen(device: number, handle: Uint8Array, bytes: number): number {
    const { allocations } = this.shared
    const one = allocations.get(memoryOf(handle))
    if (one === undefined || one.memory.bytes !== bytes) {
      throw new NativeError('ckpt_memory_open', STATUS_ERR_DEVICE, 'invalid resource handle')
    }
    this.#time.busy(one.openMs)
    const { looks } = one
    return this.add(this.memories, { ring: one.memory, device, write: () => one.write(looks) })
  }

  memoryExport(memory: number): Uint8Array {
    return ipcHandle(memory)
  }

  /** What an engine's worker maps. */
  ringOf(handle: Uint8Array): TracedMemory | null {
    return this.memories.get(memoryOf(handle))?.ring ?? null
  }

  refcounterCreate(): { refcounter: number; name: string } {
    const refcounter = this.shared.handle()
    return { refcounter, name: `/ckpt-${refcounter}` }
  }

  refcounterDestroy(): void {}

  streamCreate(): number {
    return this.add(this.streams, new Stream())
  }

  streamDestroy(stream: number): void {
    const one = this.of(this.streams, stream, 'ckpt_stream_destroy')
    if (one.hurry(Number.POSITIVE_INFINITY) === null) {
      this.witness.violated('a stream was destroyed that waits for another rank')
    }
    this.streams.delete(stream)
  }

  streamWaitEvent(stream: number, event: number): void {
    const { record } = this.of(this.#events, event, 'ckpt_stream_wait_event')
    this.of(this.streams, stream, 'ckpt_stream_wait_event').waitFor(record)
  }

  streamSync(stream: number, _signal: number, timeoutMs: number): void {
    const one = this.streams.get(stream)
    // whoever outlives a rank does not know whether it has given back its streams
    if (one === undefined)
      throw new NativeError('ckpt_stream_sync', STATUS_ERR_HANDLE, 'it is gone')
    one.sync(timeoutMs)
  }

  eventCreate(): number {
    return this.add(this.#events, { record: new EventRecord(null) })
  }

  eventDestroy(event: number): void {
    this.of(this.#events, event, 'ckpt_event_destroy')
    this.#events.delete(event)
  }

  eventRecord(event: number, stream: number): void {
    const recorded = this.of(this.#events, event, 'ckpt_event_record')
    recorded.record = this.of(this.streams, stream, 'ckpt_event_record').record()
  }

  eventNotify(event: number, signal: number): void {
    const { record } = this.of(this.#events, event, 'ckpt_event_notify')
    record.whenComplete(() => this.signalRaise(signal, 0))
  }

  eventQuery(event: number): boolean {
    const { complete, error } = this.of(this.#events, event, 'ckpt_event_query').record
    if (complete && error !== null) throw error
    return complete
  }

  /** A buffer of a checkpoint that others can read. */
  serveBuffer(): number {
    const buffer = this.shared.handle()
    this.shared.owners.set(buffer, this.life)
    return buffer
  }

  bufferAlloc(bytes: number): number {
    return this.#buffers.alloc(bytes)
  }

  bufferFree(buffer: number): void {
    this.#buffers.free(buffer)
  }

  bufferGather(to: number, pieces: readonly GatherPiece[]): void {
    this.#buffers.gather(to, pieces)
  }

  copyH2d(
    stream: number,
    memory: number,
    offset: number,
    buffer: number,
    bufferOffset: number,
    bytes: number,
  ): void {
    const rows = { from: bufferOffset, to: offset, width: bytes, height: 1 }
    this.#copyRows(stream, memory, buffer, { ...rows, fromPitch: bytes, toPitch: bytes })
  }

  copyH2dBatch(stream: number, pieces: readonly H2dPiece[]): void {
    for (const piece of pieces) {
      const { memory, memoryOffset: to, memoryPitch: toPitch, width, height } = piece
      const { buffer, bufferOffset: from, bufferPitch: fromPitch } = piece
      this.#copyRows(stream, memory, buffer, { from, fromPitch, to, toPitch, width, height })
    }
  }

  #copyRows(stream: number, memory: number, buffer: number, rows: Rows): void {
    const content = (at: number, bytes: number) => this.#buffers.content(buffer, at, bytes)
    const ms = (rows.width * rows.height) / this.#speed.h2dBytesPerMs + this.#extraMs
    this.#copy(stream, memory, { handle: buffer, content }, rows, ms)
  }

  copyDevice(stream: number, to: number, from: number, pieces: readonly CopyPiece[]): void {
    const { ring } = this.of(this.memories, from, 'ckpt_copy_device')
    const content = (at: number, bytes: number) => ring.content(at, bytes)
    for (const { srcOffset, dstOffset, bytes } of pieces) {
      const rows = { from: srcOffset, to: dstOffset, width: bytes, height: 1 }
      const pitches = { fromPitch: bytes, toPitch: bytes }
      const source = { handle: NO_BUFFER, content }
      this.#copy(stream, to, source, { ...rows, ...pitches }, this.shared.durationMs(bytes))
    }
  }

  /** What changes while it is read is copied as nobody knows what. */
  #copy(stream: number, memory: number, source: CopySource, rows: Rows, ms: number): void {
    if (!this.inRun) this.witness.violated('a copy of a run that has closed')
    const { ring, device, write } = this.of(this.memories, memory, 'copy')
    const check = write?.()
    const each = Array.from({ length: rows.height }, (_, row) => row)
    const contents = () =>
      each.map((row) => source.content(rows.from + row * rows.fromPitch, rows.width))
    const place = (row: number) => rows.to + row * rows.toPitch
    let before: Extent[][] = []
    const start = () => {
      check?.()
      before = contents()
      for (const row of each) ring.spoil(place(row), rows.width)
    }
    const end = () => {
      check?.()
      if (this.copyFault?.(source.handle) === true) {
        return new NativeError('ckpt_copy_h2d', STATUS_ERR_DEVICE, 'the copy has failed')
      }
      if (!Bun.deepEquals(before, contents())) return null
      for (const row of each) ring.put(place(row), rows.width, before[row] as Extent[])
      return null
    }
    const queues = this.queues.get(device)
    const whenTurn = (begin: () => void) => queues?.behind(memory, begin)
    const handles = [memory, source.handle]
    const what = { life: this.life, durationMs: ms, handles, start, end }
    const work = new TimedWork(this.#time, queues === undefined ? what : { ...what, whenTurn })
    this.of(this.streams, stream, 'copy').push(work)
  }
}
