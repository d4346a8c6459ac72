import { statfsSync } from 'node:fs'
import * as abi from './generated.ts'
import { NativeError } from './native-error.ts'
import { FfiP2p, type P2p } from './p2p.ts'
import {
  cString,
  cText,
  encodeCopyPieces,
  encodeGatherPieces,
  encodeH2dPieces,
  encodeReadPieces,
  safeNumber,
  StructView,
} from './structs.ts'
import { type NativeCalls, openSymbols, type SymbolName } from './symbols.ts'
import type * as types from './types.ts'

type Handle = types.Handle

const DIGEST_BYTES = 32
/** `ckpt_file_read` is for headers. */
const FILE_READ_MAX_BYTES = 128 * 2 ** 20
const TEXT_BYTES = 4096
/** The most virtual devices of the host library. */
export const HOST_DEVICES_MAX = 64

/**
 * Opens the native library, checks that it fits this program and starts it (the first call of the process decides its
 * settings). Throws `native_missing` when it is not built or does not load, and what the device says otherwise.
 *
 * The host library's settings can also come from `CKPT_HOST_DEVICE_BYTES` and `CKPT_HOST_COPY_BYTES_PER_SECOND`, so that a test can
 * give them to a daemon that it starts.
 *
 * @example
 * const library = openLibrary({ kind: 'host', hostDevices: 2 })
 * const memory = library.memoryAlloc(0, 2 ** 21)
 */
export function openLibrary(options: types.LibraryOptions): types.Library {
  const devices = options.hostDevices ?? 1
  if (!(Number.isSafeInteger(devices) && devices >= 1 && devices <= HOST_DEVICES_MAX)) {
    throw new RangeError(`hostDevices must be 1 to ${HOST_DEVICES_MAX}`)
  }
  const deviceBytes = options.hostDeviceBytes || fromEnvironment('CKPT_HOST_DEVICE_BYTES')
  const share = deviceBytes === 0 ? devices : 1
  const library = new FfiLibrary(options.kind, openSymbols(options.kind), devices, share)
  if (options.kind === 'cuda') makeSettings(library)
  const config = new StructView('config')
  // One process has one configuration, but a daemon, an engine and a test in it may want different numbers of devices: all
  // exist, and each user sees as many as it asked for, with its share of the memory.
  config.set('hostDevices', HOST_DEVICES_MAX)
  config.set('hostDeviceBytes', deviceBytes || sharedMemoryBytes(options.kind))
  config.set(
    'hostCopyBytesPerSecond',
    options.hostCopyBytesPerSecond || fromEnvironment('CKPT_HOST_COPY_BYTES_PER_SECOND'),
  )
  config.set(
    'readBytesPerSecond',
    options.readBytesPerSecond || fromEnvironment('CKPT_READ_BYTES_PER_SECOND'),
  )
  library.init(config.bytes)
  return library
}

/**
 * Streams share a hardware queue, and wait for each other, where there are more of them than connections (CUDA's default is
 * 8). NCCL lets ranks share a device only when told. Both are read once, at the first call. Only the main thread sets them:
 * setenv races with every other thread's getenv.
 */
const SETTINGS = { CUDA_DEVICE_MAX_CONNECTIONS: '32', NCCL_MULTI_RANK_GPU_ENABLE: '1' }

function makeSettings(library: FfiLibrary): void {
  if (!Bun.isMainThread) return
  for (const [name, value] of Object.entries(SETTINGS)) {
    if (process.env[name] === undefined) library.setenv(name, value)
  }
}

function fromEnvironment(name: string): number {
  const text = process.env[name]
  if (text === undefined || text === '') return 0
  if (!/^\d+$/.test(text)) throw new RangeError(`${name}=${text} is not a whole number`)
  return Number(text)
}

/** All of shared memory, which does not change while the process runs (what is free does). */
function sharedMemoryBytes(kind: 'host' | 'cuda'): number {
  if (kind === 'cuda') return 0
  const { blocks, bsize } = statfsSync('/dev/shm')
  return blocks * bsize
}

class FfiLibrary implements types.Library {
  readonly kind: 'host' | 'cuda'
  readonly #calls: NativeCalls
  readonly #hostDevices: number
  /** The virtual devices that have one shared memory divide it. */
  readonly #share: number
  /** Output words of the calls; not in the JavaScript heap's movable part, because the buffer was made first. */
  readonly #u32 = new Uint32Array(new ArrayBuffer(4))
  readonly #u64 = new BigUint64Array(new ArrayBuffer(8))
  readonly #u64Second = new BigUint64Array(new ArrayBuffer(8))
  readonly #text = new Uint8Array(new ArrayBuffer(TEXT_BYTES))
  readonly p2p: P2p = new FfiP2p((symbol, ...args) => this.#guard(symbol, ...args))

  constructor(kind: 'host' | 'cuda', calls: NativeCalls, hostDevices: number, share: number) {
    this.kind = kind
    this.#calls = calls
    this.#hostDevices = hostDevices
    this.#share = kind === 'host' ? share : 1
  }

  /** Calls and throws on every status but `CKPT_OK` (and `CKPT_NOT_READY`, which is returned). */
  #guard(
    symbol: SymbolName,
    ...args: (number | Uint8Array | Uint32Array | BigUint64Array)[]
  ): number {
    const status = this.#calls[symbol](...args)
    if (status === abi.STATUS_OK || status === abi.STATUS_NOT_READY) return status
    this.#text[0] = 0
    this.#calls.ckpt_last_error(this.#text, this.#text.length)
    throw new NativeError(symbol, status, cText(this.#text))
  }

  /** For functions whose last argument is a `uint32_t*`. */
  #u32Of(symbol: SymbolName, ...args: (number | Uint8Array | Uint32Array)[]): number {
    this.#guard(symbol, ...args, this.#u32)
    return this.#u32[0] ?? 0
  }

  #textOf(symbol: SymbolName, handle: Handle): string {
    this.#guard(symbol, handle, this.#text, this.#text.length)
    return cText(this.#text)
  }

  #digestOf(symbol: SymbolName, handle: Handle, offset: number, bytes: number): Uint8Array {
    const digest = new Uint8Array(new ArrayBuffer(DIGEST_BYTES))
    this.#guard(symbol, handle, offset, bytes, digest)
    return digest
  }

  init(config: Uint8Array): void {
    this.#guard('ckpt_init', config)
  }

  setenv(name: string, value: string): void {
    this.#guard('ckpt_setenv', cString(name), cString(value))
  }

  liveObjects(): number {
    return this.#u32Of('ckpt_live_objects')
  }

  threadBind(node: number): boolean {
    return this.#u32Of('ckpt_thread_bind', node) === 1
  }

  signalCreate(): Handle {
    return this.#u32Of('ckpt_signal_create')
  }

  signalDestroy(signal: Handle): void {
    this.#guard('ckpt_signal_destroy', signal)
  }

  signalFd(signal: Handle): number {
    return this.#u32Of('ckpt_signal_fd', signal)
  }

  signalRaise(signal: Handle, bits: number): void {
    this.#guard('ckpt_signal_raise', signal, bits)
  }

  signalTake(signal: Handle): number {
    return this.#u32Of('ckpt_signal_take', signal)
  }

  signalReset(signal: Handle): void {
    this.#guard('ckpt_signal_reset', signal)
  }

  signalWait(signal: Handle, timeoutMs: number): number {
    return this.#u32Of('ckpt_signal_wait', signal, timeoutMs)
  }

  deviceCount(): number {
    const count = this.#u32Of('ckpt_device_count')
    return this.kind === 'host' ? Math.min(count, this.#hostDevices) : count
  }

  deviceDescribe(device: number): types.DeviceInfo {
    const view = new StructView('deviceInfo')
    this.#guard('ckpt_device_describe', device, view.bytes)
    return {
      name: view.text('name'),
      uuid: view.text('uuid'),
      pci: view.text('pci'),
      totalBytes: Math.floor(view.number('totalBytes') / this.#share),
      numaNode: view.number('numaNode'),
    }
  }

  deviceMemory(device: number): types.DeviceMemory {
    this.#guard('ckpt_device_memory', device, this.#u64, this.#u64Second)
    return {
      freeBytes: Math.floor(safeNumber(this.#u64[0] ?? 0n) / this.#share),
      totalBytes: Math.floor(safeNumber(this.#u64Second[0] ?? 0n) / this.#share),
    }
  }

  memoryAlloc(device: number, bytes: number): Handle {
    return this.#u32Of('ckpt_memory_alloc', device, bytes)
  }

  memoryFree(memory: Handle): void {
    this.#guard('ckpt_memory_free', memory)
  }

  memoryExport(memory: Handle): Uint8Array {
    const handle = new Uint8Array(new ArrayBuffer(abi.HANDLE_BYTES))
    this.#guard('ckpt_memory_export', memory, handle)
    return handle
  }

  memoryOpen(device: number, handle: Uint8Array, bytes: number): Handle {
    if (handle.length !== abi.HANDLE_BYTES) {
      throw new RangeError(`an IPC handle has ${abi.HANDLE_BYTES} bytes, not ${handle.length}`)
    }
    return this.#u32Of('ckpt_memory_open', device, handle, bytes)
  }

  memoryFill(memory: Handle, offset: number, bytes: number, value: number): void {
    this.#guard('ckpt_memory_fill', memory, offset, bytes, value)
  }

  memorySha256(memory: Handle, offset: number, bytes: number): Uint8Array {
    return this.#digestOf('ckpt_memory_sha256', memory, offset, bytes)
  }

  bufferAlloc(bytes: number, flags: number): Handle {
    return this.#u32Of('ckpt_buffer_alloc', bytes, flags)
  }

  bufferAllocNear(bytes: number, node: number): { buffer: Handle; placed: boolean } {
    const placed = new Uint32Array(new ArrayBuffer(4))
    const buffer = this.#u32Of('ckpt_buffer_alloc_near', bytes, node, placed)
    return { buffer, placed: placed[0] === 1 }
  }

  bufferMap(file: Handle): Handle {
    return this.#u32Of('ckpt_buffer_map', file)
  }

  bufferFree(buffer: Handle): void {
    this.#guard('ckpt_buffer_free', buffer)
  }

  bufferSha256(buffer: Handle, offset: number, bytes: number): Uint8Array {
    return this.#digestOf('ckpt_buffer_sha256', buffer, offset, bytes)
  }

  bufferBytes(buffer: Handle): number {
    this.#guard('ckpt_buffer_bytes', buffer, this.#u64)
    return safeNumber(this.#u64[0] ?? 0n)
  }

  bufferPath(buffer: Handle): string {
    return this.#textOf('ckpt_buffer_path', buffer)
  }

  bufferGather(dst: Handle, pieces: readonly types.GatherPiece[]): void {
    this.#guard('ckpt_buffer_gather', dst, encodeGatherPieces(pieces), pieces.length)
  }

  fileOpen(path: string): Handle {
    return this.#u32Of('ckpt_file_open', cString(path))
  }

  fileClose(file: Handle): void {
    this.#guard('ckpt_file_close', file)
  }

  fileDescribe(file: Handle): types.FileInfo {
    const view = new StructView('fileInfo')
    this.#guard('ckpt_file_describe', file, view.bytes)
    return {
      bytes: view.number('bytes'),
      inode: view.bigint('inode'),
      device: view.bigint('device'),
      ctimeNs: view.bigint('ctimeNs'),
      kind: view.number('kind') === abi.FILE_TMPFS ? 'tmpfs' : 'disk',
      leased: view.number('leased') === 1,
    }
  }

  fileLocate(file: Handle): types.FileLocation {
    const view = new StructView('fileLocation')
    this.#guard('ckpt_file_locate', file, view.bytes)
    const looked = view.number('bytesLooked')
    const cached = view.number('bytesCached')
    return {
      filesystem: view.number('filesystem'),
      cachedFraction: view.number('cachedKnown') === 0 ? null : looked === 0 ? 1 : cached / looked,
    }
  }

  fileDirect(file: Handle): boolean {
    return this.#u32Of('ckpt_file_direct', file) === 1
  }

  fileRead(file: Handle, offset: number, bytes: number): Uint8Array {
    if (bytes > FILE_READ_MAX_BYTES)
      throw new RangeError(`fileRead is for headers, not ${bytes} bytes`)
    const read = new Uint8Array(new ArrayBuffer(Math.max(1, bytes)))
    this.#guard('ckpt_file_read', file, offset, bytes, read)
    return read.subarray(0, bytes)
  }

  fileLease(file: Handle, signal: Handle): void {
    this.#guard('ckpt_file_lease', file, signal)
  }

  fileCheck(file: Handle): void {
    this.#guard('ckpt_file_check', file)
  }

  fileSha256(file: Handle, offset: number, bytes: number): Uint8Array {
    return this.#digestOf('ckpt_file_sha256', file, offset, bytes)
  }

  readStart(
    pieces: readonly types.ReadPiece[],
    threads: types.ReadThreads,
    signal: Handle,
  ): Handle {
    const [least, most] = typeof threads === 'number' ? [threads, threads] : threads
    const encoded = encodeReadPieces(pieces)
    return this.#u32Of('ckpt_read_start', encoded, pieces.length, least, most, signal)
  }

  readQuery(read: Handle): types.ReadProgress {
    const view = new StructView('readProgress')
    this.#guard('ckpt_read_query', read, view.bytes)
    const state = view.number('state')
    return {
      bytesTotal: view.number('bytesTotal'),
      bytesDone: view.number('bytesDone'),
      piecesTotal: view.number('piecesTotal'),
      piecesPrefix: view.number('piecesPrefix'),
      state:
        state === abi.STATUS_OK ? 'done' : state === abi.STATUS_NOT_READY ? 'running' : 'failed',
      failedPiece: view.number('failedPiece'),
    }
  }

  readError(read: Handle): string {
    return this.#textOf('ckpt_read_error', read)
  }

  readWait(read: Handle, signal: Handle, timeoutMs: number): void {
    this.#guard('ckpt_read_wait', read, signal, timeoutMs)
  }

  readNotify(read: Handle, pieces: number, signal: Handle): void {
    this.#guard('ckpt_read_notify', read, pieces, signal)
  }

  readDestroy(read: Handle): void {
    this.#guard('ckpt_read_destroy', read)
  }

  streamCreate(device: number): Handle {
    return this.#u32Of('ckpt_stream_create', device)
  }

  streamDestroy(stream: Handle): void {
    this.#guard('ckpt_stream_destroy', stream)
  }

  streamWaitEvent(stream: Handle, event: Handle): void {
    this.#guard('ckpt_stream_wait_event', stream, event)
  }

  streamSync(stream: Handle, signal: Handle, timeoutMs: number): void {
    this.#guard('ckpt_stream_sync', stream, signal, timeoutMs)
  }

  eventCreate(device: number): Handle {
    return this.#u32Of('ckpt_event_create', device)
  }

  eventDestroy(event: Handle): void {
    this.#guard('ckpt_event_destroy', event)
  }

  eventRecord(event: Handle, stream: Handle): void {
    this.#guard('ckpt_event_record', event, stream)
  }

  eventNotify(event: Handle, signal: Handle): void {
    this.#guard('ckpt_event_notify', event, signal)
  }

  eventQuery(event: Handle): boolean {
    return this.#guard('ckpt_event_query', event) === abi.STATUS_OK
  }

  eventWait(event: Handle, signal: Handle, timeoutMs: number): void {
    this.#guard('ckpt_event_wait', event, signal, timeoutMs)
  }

  copyH2d(
    stream: Handle,
    memory: Handle,
    memoryOffset: number,
    buffer: Handle,
    bufferOffset: number,
    bytes: number,
  ): void {
    this.#guard('ckpt_copy_h2d', stream, memory, memoryOffset, buffer, bufferOffset, bytes)
  }

  copyH2d2d(
    stream: Handle,
    memory: Handle,
    memoryOffset: number,
    memoryPitch: number,
    buffer: Handle,
    bufferOffset: number,
    bufferPitch: number,
    width: number,
    height: number,
  ): void {
    this.#guard(
      'ckpt_copy_h2d_2d',
      stream,
      memory,
      memoryOffset,
      memoryPitch,
      buffer,
      bufferOffset,
      bufferPitch,
      width,
      height,
    )
  }

  copyH2dBatch(stream: Handle, pieces: readonly types.H2dPiece[]): void {
    this.#guard('ckpt_copy_h2d_batch', stream, encodeH2dPieces(pieces), pieces.length)
  }

  copyDevice(stream: Handle, dst: Handle, src: Handle, pieces: readonly types.CopyPiece[]): void {
    this.#guard('ckpt_copy_device', stream, dst, src, encodeCopyPieces(pieces), pieces.length)
  }

  groupCreate(members: number): Handle {
    return this.#u32Of('ckpt_group_create', members)
  }

  groupJoin(group: Handle, member: number, stream: Handle, memory: Handle): void {
    this.#guard('ckpt_group_join', group, member, stream, memory)
  }

  groupBroadcast(group: Handle, member: number, root: number, offset: number, bytes: number): void {
    this.#guard('ckpt_group_broadcast', group, member, root, offset, bytes)
  }

  groupAbort(group: Handle): void {
    this.#guard('ckpt_group_abort', group)
  }

  groupDestroy(group: Handle): void {
    this.#guard('ckpt_group_destroy', group)
  }

  communicatorId(sharers: number, processes = 1): Uint8Array {
    const id = new Uint8Array(new ArrayBuffer(abi.COMMUNICATOR_ID_BYTES))
    this.#guard('ckpt_communicator_id', sharers, processes, id)
    return id
  }

  communicatorCreate(
    place: types.CommunicatorPlace,
    signal: Handle,
    timeoutMs: number,
  ): types.Handle {
    const { id, device, members, member, sharers } = place
    if (id.length !== abi.COMMUNICATOR_ID_BYTES) {
      throw new RangeError(
        `a communicator's id has ${abi.COMMUNICATOR_ID_BYTES} bytes, not ${id.length}`,
      )
    }
    return this.#u32Of(
      'ckpt_communicator_create',
      id,
      device,
      members,
      member,
      sharers,
      signal,
      timeoutMs,
    )
  }

  communicatorBroadcast(
    communicator: Handle,
    stream: Handle,
    memory: Handle,
    root: number,
    offset: number,
    bytes: number,
  ): void {
    this.#guard('ckpt_communicator_broadcast', communicator, stream, memory, root, offset, bytes)
  }

  communicatorAbort(communicator: Handle): void {
    this.#guard('ckpt_communicator_abort', communicator)
  }

  communicatorDestroy(communicator: Handle): void {
    this.#guard('ckpt_communicator_destroy', communicator)
  }

  refcounterCreate(): { refcounter: Handle; name: string } {
    this.#guard('ckpt_refcounter_create', this.#u32, this.#text, this.#text.length)
    return { refcounter: this.#u32[0] ?? 0, name: cText(this.#text) }
  }

  refcounterDestroy(refcounter: Handle): void {
    this.#guard('ckpt_refcounter_destroy', refcounter)
  }
}
