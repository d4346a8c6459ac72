import {
  type Library,
  NativeError,
  SIGNAL_ABORT,
  STATUS_ERR_ABORTED,
  STATUS_ERR_HANDLE,
  STATUS_ERR_TIMEOUT,
} from '@ckpt/cuda'
import { STATUS_ERR_DEVICE } from '@ckpt/cuda/generated'
import { Broadcasts } from './broadcasts.ts'
import { HardwareQueues } from './hardware-queues.ts'
import type { Random } from './random.ts'
import { RingMemory } from './ring-memory.ts'
import type { DeviceSpeed, SharedDevices } from './shared-devices.ts'
import { EventRecord, Stream, TimedWork } from './streams.ts'
import type { Life, SimulatedTime } from './time.ts'
import type { Witness } from './violation.ts'

export const DEVICE_BYTES = 2 ** 30

const IPC_HANDLE_BYTES = 64
const ID_BYTES = 128

interface Signal {
  bits: number
  wake: () => void
}

interface Member {
  readonly id: string
  readonly broadcasts: Broadcasts
  readonly member: number
}

/**
 * What the daemon's code wants of the native library, over simulated time: streams that really are asynchronous, memory that knows
 * what lies in it. Handles that are used after their end are told of.
 */
export class SimulatedLibrary {
  readonly shared: SharedDevices
  /** The device error that the next copies have; null: they are good. */
  copyFault: ((buffer: number) => boolean) | null = null
  /** A rank is in a run, or opens one: nobody else may enqueue anything. */
  inRun = false
  /** How the next joining ends where it was waited for in vain. */
  joinFails: 'aborted' | 'late' | null = null
  readonly #life: Life
  readonly #time: SimulatedTime
  readonly #random: Random
  readonly #speed: DeviceSpeed
  readonly #witness: Witness
  readonly #signals = new Map<number, Signal>()
  readonly #memories = new Map<number, { readonly ring: RingMemory; readonly device: number }>()
  readonly #streams = new Map<number, Stream>()
  readonly #events = new Map<number, { record: EventRecord }>()
  readonly #groups = new Map<number, { readonly broadcasts: Broadcasts; members: Joined[] }>()
  readonly #communicators = new Map<number, Member>()
  readonly #used = new Map<number, number>()

  /** By device that several ranks of this process have. */
  readonly #queues: ReadonlyMap<number, HardwareQueues>

  /**
   * @param shared what the processes of a simulation have together
   * @param devices of each rank of this process
   */
  constructor(shared: SharedDevices, life: Life, devices: readonly number[]) {
    const several = devices.filter((device, rank) => devices.indexOf(device) !== rank)
    this.#queues = new Map(several.map((device) => [device, new HardwareQueues()]))
    const { time, random, speed, witness } = shared
    this.shared = shared
    this.#life = life
    this.#time = time
    this.#random = random
    this.#speed = speed
    this.#witness = witness
  }

  /** As the daemon's code knows it: what it does not call in a simulation is not there. */
  get asLibrary(): Library {
    return this as unknown as Library
  }

  /** Rings, streams, events and groups that were not given back. */
  get live(): { memories: number; streams: number; events: number; groups: number } {
    return {
      memories: this.#memories.size,
      streams: this.#streams.size,
      events: this.#events.size,
      groups: this.#groups.size,
    }
  }

  /** Whether a copy out of this buffer is under way or to come. */
  reads(buffer: number): boolean {
    return [...this.#streams.values()].some((stream) => stream.uses(buffer))
  }

  #add<T>(table: Map<number, T>, value: T): number {
    const handle = this.shared.handle()
    table.set(handle, value)
    return handle
  }

  #of<T>(table: Map<number, T>, handle: number, symbol: string): T {
    const value = table.get(handle)
    if (value === undefined) {
      this.#witness.violated(`${symbol}: handle ${handle} has been given back`)
      throw new NativeError(symbol, STATUS_ERR_HANDLE, `${symbol}: no handle ${handle}`)
    }
    return value
  }

  get #extraMs(): number {
    return this.#random.between(0, this.#speed.extraMs)
  }

  #broadcasts(members: number): Broadcasts {
    return new Broadcasts(this.shared, members, 'error')
  }

  signalCreate(): number {
    return this.#add(this.#signals, { bits: 0, wake: () => {} })
  }

  onSignal(signal: number, wake: () => void): void {
    this.#of(this.#signals, signal, 'onSignal').wake = wake
  }

  signalDestroy(signal: number): void {
    this.#of(this.#signals, signal, 'ckpt_signal_destroy')
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
    return this.#of(this.#signals, signal, 'ckpt_signal_take').bits
  }

  signalReset(signal: number): void {
    this.#of(this.#signals, signal, 'ckpt_signal_reset').bits = 0
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
    return this.#add(this.#memories, { ring: new RingMemory(bytes), device })
  }

  memoryFree(memory: number): void {
    const { ring, device } = this.#of(this.#memories, memory, 'ckpt_memory_free')
    if (ring.readers.size > 0) this.#witness.violated('a ring was freed that a worker reads')
    for (const stream of this.#streams.values()) {
      if (stream.uses(memory)) this.#witness.violated('a ring was freed that is being written')
    }
    ring.freed = true
    this.#used.set(device, (this.#used.get(device) ?? 0) - ring.bytes)
    this.#memories.delete(memory)
  }

  memoryExport(memory: number): Uint8Array {
    const handle = new Uint8Array(IPC_HANDLE_BYTES)
    new DataView(handle.buffer).setUint32(0, memory)
    return handle
  }

  /** What an engine's worker maps. */
  ringOf(handle: Uint8Array): RingMemory | null {
    const memory = new DataView(handle.buffer, handle.byteOffset).getUint32(0)
    return this.#memories.get(memory)?.ring ?? null
  }

  refcounterCreate(): { refcounter: number; name: string } {
    const refcounter = this.shared.handle()
    return { refcounter, name: `/ckpt-${refcounter}` }
  }

  refcounterDestroy(): void {}

  streamCreate(): number {
    return this.#add(this.#streams, new Stream())
  }

  streamDestroy(stream: number): void {
    const one = this.#of(this.#streams, stream, 'ckpt_stream_destroy')
    if (one.hurry(Number.POSITIVE_INFINITY) === null) {
      this.#witness.violated('a stream was destroyed that waits for another rank')
    }
    this.#streams.delete(stream)
  }

  streamWaitEvent(stream: number, event: number): void {
    const { record } = this.#of(this.#events, event, 'ckpt_stream_wait_event')
    this.#of(this.#streams, stream, 'ckpt_stream_wait_event').waitFor(record)
  }

  streamSync(stream: number, _signal: number, timeoutMs: number): void {
    const one = this.#streams.get(stream)
    // whoever outlives a rank does not know whether it has given back its streams
    if (one === undefined)
      throw new NativeError('ckpt_stream_sync', STATUS_ERR_HANDLE, 'it is gone')
    one.sync(timeoutMs)
  }

  eventCreate(): number {
    return this.#add(this.#events, { record: new EventRecord(null) })
  }

  eventDestroy(event: number): void {
    this.#of(this.#events, event, 'ckpt_event_destroy')
    this.#events.delete(event)
  }

  eventRecord(event: number, stream: number): void {
    const recorded = this.#of(this.#events, event, 'ckpt_event_record')
    recorded.record = this.#of(this.#streams, stream, 'ckpt_event_record').record()
  }

  eventNotify(event: number, signal: number): void {
    const { record } = this.#of(this.#events, event, 'ckpt_event_notify')
    record.whenComplete(() => this.signalRaise(signal, 0))
  }

  eventQuery(event: number): boolean {
    const { complete, error } = this.#of(this.#events, event, 'ckpt_event_query').record
    if (complete && error !== null) throw error
    return complete
  }

  /** Reads of another host's memory; a buffer has one handle in all processes, which its key is. */
  readonly p2p = {
    open: () => this.shared.handle(),
    close: () => {},
    connect: () => this.shared.handle(),
    disconnect: () => {},
    attach: (_peer: number, key: Uint8Array) => bufferOf(key),
    detach: () => {},
    transport: () => 'shm',
    copyRemote: (...copy: Parameters<SimulatedLibrary['copyH2d']>) => this.copyH2d(...copy),
  }

  copyH2d(
    stream: number,
    memory: number,
    offset: number,
    buffer: number,
    bufferOffset: number,
    bytes: number,
  ): void {
    if (!this.inRun) this.#witness.violated('a copy of a run that has closed')
    const { ring, device } = this.#of(this.#memories, memory, 'ckpt_copy_h2d')
    const ms = bytes / this.#speed.h2dBytesPerMs + this.#extraMs
    const end = () => {
      if (this.copyFault?.(buffer) === true) {
        return new NativeError('ckpt_copy_h2d', STATUS_ERR_DEVICE, 'the copy has failed')
      }
      ring.write(offset, bytes, buffer, bufferOffset)
      return null
    }
    const start = () => ring.spoil(offset, bytes)
    const queues = this.#queues.get(device)
    const whenTurn = (begin: () => void) => queues?.behind(memory, begin)
    const what = { life: this.#life, durationMs: ms, handles: [memory, buffer], start, end }
    const work = new TimedWork(this.#time, queues === undefined ? what : { ...what, whenTurn })
    this.#of(this.#streams, stream, 'ckpt_copy_h2d').push(work)
  }

  groupCreate(members: number): number {
    return this.#add(this.#groups, { broadcasts: this.#broadcasts(members), members: [] })
  }

  groupJoin(group: number, member: number, stream: number, memory: number): void {
    const { members } = this.#of(this.#groups, group, 'ckpt_group_join')
    members[member] = { stream, memory }
  }

  groupBroadcast(group: number, member: number, root: number, offset: number, bytes: number): void {
    const { broadcasts, members } = this.#of(this.#groups, group, 'ckpt_group_broadcast')
    const joined = members[member]
    if (joined === undefined) return this.#witness.violated('a broadcast of who has not joined')
    if (broadcasts.aborted(member)) {
      const words = 'the group was aborted'
      throw new NativeError('ckpt_group_broadcast', STATUS_ERR_ABORTED, words)
    }
    this.#broadcast(broadcasts, member, joined, root, offset, bytes)
  }

  #broadcast(
    broadcasts: Broadcasts,
    member: number,
    { stream, memory }: Joined,
    root: number,
    offset: number,
    bytes: number,
    queues: HardwareQueues | null = null,
  ): void {
    if (!this.inRun) this.#witness.violated('a broadcast of a run that has closed')
    const { ring } = this.#of(this.#memories, memory, 'broadcast')
    const queue = this.#of(this.#streams, stream, 'broadcast')
    broadcasts.enqueue(
      member,
      queue,
      { handle: memory, ring, life: this.#life, queues },
      root,
      offset,
      bytes,
    )
  }

  groupAbort(group: number): void {
    this.#of(this.#groups, group, 'ckpt_group_abort').broadcasts.abortAll()
  }

  groupDestroy(group: number): void {
    this.#of(this.#groups, group, 'ckpt_group_destroy').broadcasts.abortAll()
    this.#groups.delete(group)
  }

  communicatorId(): Uint8Array {
    const id = new Uint8Array(ID_BYTES)
    new DataView(id.buffer).setUint32(0, this.shared.handle())
    return id
  }

  /** All have come already, unless they will not: see {@link Meetings}. */
  communicatorCreate(
    place: { readonly id: Uint8Array; readonly members: number; readonly member: number },
    signal: number,
  ): number {
    const id = place.id.toHex()
    const broadcasts = this.shared.meetings.complete(id)
    const fails = this.joinFails
    this.joinFails = null
    if (fails !== null || broadcasts === null || this.aborts(signal)) {
      const status = fails === 'late' ? STATUS_ERR_TIMEOUT : STATUS_ERR_ABORTED
      throw new NativeError('ckpt_communicator_create', status, 'not every member has come')
    }
    return this.#add(this.#communicators, { id, broadcasts, member: place.member })
  }

  /** Whether a member has joined, and is to meet nobody. */
  hasJoined(id: string, member: number): boolean {
    return [...this.#communicators.values()].some((one) => one.id === id && one.member === member)
  }

  communicatorBroadcast(
    communicator: number,
    stream: number,
    memory: number,
    root: number,
    offset: number,
    bytes: number,
  ): void {
    const of = this.#of(this.#communicators, communicator, 'ckpt_communicator_broadcast')
    const device = this.#memories.get(memory)?.device ?? 0
    const queues = this.#queues.get(device) ?? null
    this.#broadcast(of.broadcasts, of.member, { stream, memory }, root, offset, bytes, queues)
  }

  communicatorAbort(communicator: number): void {
    const of = this.#of(this.#communicators, communicator, 'ckpt_communicator_abort')
    of.broadcasts.abort(of.member)
  }

  communicatorDestroy(communicator: number): void {
    const one = this.#communicators.get(communicator)
    // whoever outlives a rank does it again
    if (one === undefined) {
      throw new NativeError('ckpt_communicator_destroy', STATUS_ERR_HANDLE, 'it is gone')
    }
    one.broadcasts.abort(one.member)
    this.#communicators.delete(communicator)
  }
}

interface Joined {
  readonly stream: number
  readonly memory: number
}

/** What a reader of another host is told of a buffer. */
export function keyOf(buffer: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(buffer).buffer)
}

function bufferOf(key: Uint8Array): number {
  return new Uint32Array(key.slice().buffer)[0] as number
}
