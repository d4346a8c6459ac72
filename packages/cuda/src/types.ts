import type { P2p } from './p2p.ts'

/** How the native library is opened; the same in the main thread and in every Worker. */
export interface LibraryOptions {
  readonly kind: 'host' | 'cuda'
  /** Host library only: number of virtual devices (1 to 64; default 1). */
  readonly hostDevices?: number
  /** Host library only: memory of each virtual device; 0 or absent: what shared memory has free. */
  readonly hostDeviceBytes?: number
  /** Host library only: throttle of each stream, for tests; 0 or absent: none. */
  readonly hostCopyBytesPerSecond?: number
  /** Throttle of each read, for tests; 0 or absent: none. */
  readonly readBytesPerSecond?: number
}

/** A u32 handle of the native library: index and generation, never 0. */
export type Handle = number

export interface DeviceInfo {
  readonly name: string
  /** `GPU-` and 36 characters, as NVML prints it. */
  readonly uuid: string
  /** PCI address; empty on the host library. */
  readonly pci: string
  readonly totalBytes: number
  /** -1: unknown. */
  readonly numaNode: number
  /** RDMA devices that its reads of other hosts' memory go over; absent: whatever UCX finds. */
  readonly networkDevices?: readonly NetworkDeviceInfo[]
}

export interface NetworkDeviceInfo {
  /** Such as `mlx5_0`. */
  readonly name: string
  readonly bytesPerSecond: number
}

export interface DeviceMemory {
  readonly freeBytes: number
  readonly totalBytes: number
}

export interface FileInfo {
  readonly bytes: number
  readonly inode: bigint
  readonly device: bigint
  readonly ctimeNs: bigint
  readonly kind: 'disk' | 'tmpfs'
  /** Whether a read lease is held now. */
  readonly leased: boolean
}

/** Where a file's bytes are now. */
export interface FileLocation {
  /** `f_type` of statfs(2), such as 0xef53 of ext4. */
  readonly filesystem: number
  /** The part of the file that is in the page cache, 0 to 1, of samples all over it; null: the kernel does not tell. */
  readonly cachedFraction: number | null
}

/** How many threads read: always so many, or between `least` and `most` as many as turn out the fastest. */
export type ReadThreads = number | readonly [least: number, most: number]

/** One piece of a read: `bytes` bytes of a file into a buffer. */
export interface ReadPiece {
  readonly file: Handle
  readonly buffer: Handle
  readonly fileOffset: number
  readonly bufferOffset: number
  readonly bytes: number
}

export interface ReadProgress {
  readonly bytesTotal: number
  readonly bytesDone: number
  readonly piecesTotal: number
  /** Pieces `[0, piecesPrefix)` are complete. */
  readonly piecesPrefix: number
  readonly state: 'running' | 'done' | 'failed'
  /** Index of the piece that failed, when `state` is `failed`. */
  readonly failedPiece: number
}

/** One piece of a read from peers: `bytes` bytes of what is attached into a buffer. */
export interface P2pPiece {
  readonly remote: Handle
  readonly remoteOffset: number
  readonly bufferOffset: number
  readonly bytes: number
}

/** One piece of a device-to-device copy. */
export interface CopyPiece {
  readonly dstOffset: number
  readonly srcOffset: number
  readonly bytes: number
}

/**
 * One piece of a batch of copies to device memory: `height` rows of `width` bytes, as `copyH2d2d` takes them. All in bytes but the
 * height; where that is 1 or 0 the pitches are not looked at.
 */
export interface H2dPiece {
  readonly memory: Handle
  readonly memoryOffset: number
  readonly memoryPitch: number
  readonly buffer: Handle
  readonly bufferOffset: number
  readonly bufferPitch: number
  readonly width: number
  readonly height: number
}

/**
 * One piece of a gather: `height` rows of `width` bytes, row r from `srcOffset + r * srcPitch` to `dstOffset + r * dstPitch`. All in
 * bytes but the height; where that is 1 or 0 the pitches are not looked at.
 */
export interface GatherPiece {
  readonly srcBuffer: Handle
  readonly srcOffset: number
  readonly srcPitch: number
  readonly dstOffset: number
  readonly dstPitch: number
  readonly width: number
  readonly height: number
}

/**
 * The native library: one method per function of `ckpt.h`, where each is described. Every method throws a `NativeError`
 * when the function fails; arguments out of range are asserted before the call. Methods that wait take a timeout and a
 * signal (0: none) whose abort bit ends the wait from another thread; they block the calling thread.
 */
export interface Library {
  readonly kind: 'host' | 'cuda'

  /** `setenv` of the process: before the first device call, for what CUDA, NCCL and UCX read with `getenv`. */
  setenv(name: string, value: string): void
  /** Objects of every kind that are alive in this process: 0 when everything was freed. */
  liveObjects(): number

  /** Lets this thread, and those that it starts, run on the CPUs of a NUMA node only; false: it runs as before. */
  threadBind(node: number): boolean

  signalCreate(): Handle
  signalDestroy(signal: Handle): void
  /** The eventfd, for `zmqPoll`. */
  signalFd(signal: Handle): number
  /** Sets bits (0: only wakes). Never blocks. */
  signalRaise(signal: Handle, bits: number): void
  /** Drains the fd and returns the bits raised since the last reset. */
  signalTake(signal: Handle): number
  signalReset(signal: Handle): void
  /** Waits until the fd is readable, drains it, returns the bits. Throws `aborted` when the abort bit is set. */
  signalWait(signal: Handle, timeoutMs: number): number

  deviceCount(): number
  deviceDescribe(device: number): DeviceInfo
  deviceMemory(device: number): DeviceMemory

  memoryAlloc(device: number, bytes: number): Handle
  /** Frees an allocation, or closes one that {@link Library.memoryOpen} made. */
  memoryFree(memory: Handle): void
  /** The raw 64-byte IPC handle. */
  memoryExport(memory: Handle): Uint8Array
  memoryOpen(device: number, handle: Uint8Array, bytes: number): Handle
  /** Sets every byte of the range to `value` (0 to 255). */
  memoryFill(memory: Handle, offset: number, bytes: number, value: number): void
  /** SHA-256 (32 bytes) of a range. Blocks; for verification. */
  memorySha256(memory: Handle, offset: number, bytes: number): Uint8Array

  /** `flags`: 0 or `BUFFER_SHARED`. */
  bufferAlloc(bytes: number, flags: number): Handle
  /** A buffer of a NUMA node's memory; `placed` is false where that cannot be, and it is what `bufferAlloc` gives. */
  bufferAllocNear(bytes: number, node: number): { buffer: Handle; placed: boolean }
  /** Maps a whole leased file read-only in place. */
  bufferMap(file: Handle): Handle
  bufferFree(buffer: Handle): void
  bufferSha256(buffer: Handle, offset: number, bytes: number): Uint8Array
  bufferBytes(buffer: Handle): number
  /** The `/dev/shm/...` path of a shared buffer. */
  bufferPath(buffer: Handle): string
  /**
   * Copies small pieces of host memory into one buffer, in order, so that one copy takes them to a device. Blocks. Sources may be
   * mapped files; `dst` may be neither one nor a source. Throws `internal` where a piece lies outside or a pitch is less than the
   * width, with its index in the text, and `file_changed` where a mapped file's lease was broken; then, unless a lease breaks
   * while it copies, nothing was written.
   */
  bufferGather(dst: Handle, pieces: readonly GatherPiece[]): void

  fileOpen(path: string): Handle
  fileClose(file: Handle): void
  fileDescribe(file: Handle): FileInfo
  fileLocate(file: Handle): FileLocation
  /**
   * Lets reads of the file go past the page cache (O_DIRECT); false: its file system or device refuses that, and it is read
   * as before. Blocks for one block of the device.
   */
  fileDirect(file: Handle): boolean
  /** Exactly `bytes` bytes at `offset`: headers only (at most 128 MiB). Blocks. */
  fileRead(file: Handle, offset: number, bytes: number): Uint8Array
  /** Takes a read lease; `signal` (0: none) wakes when it is broken. Throws `checkpoint_busy` when refused. */
  fileLease(file: Handle, signal: Handle): void
  /** Throws `file_changed` when the file is not what it was at `fileOpen`. */
  fileCheck(file: Handle): void
  fileSha256(file: Handle, offset: number, bytes: number): Uint8Array

  /** Starts reading; `signal` (0: none) wakes as the prefix of complete pieces grows and at the end. */
  readStart(pieces: readonly ReadPiece[], threads: ReadThreads, signal: Handle): Handle
  readQuery(read: Handle): ReadProgress
  /** The text of a failed read. */
  readError(read: Handle): string
  readWait(read: Handle, signal: Handle, timeoutMs: number): void
  /** Wakes `signal` once the first `pieces` pieces are complete or the read has ended. */
  readNotify(read: Handle, pieces: number, signal: Handle): void
  readDestroy(read: Handle): void

  streamCreate(device: number): Handle
  streamDestroy(stream: Handle): void
  streamWaitEvent(stream: Handle, event: Handle): void
  streamSync(stream: Handle, signal: Handle, timeoutMs: number): void
  eventCreate(device: number): Handle
  eventDestroy(event: Handle): void
  eventRecord(event: Handle, stream: Handle): void
  /** Wakes `signal` when the last record of the event completes, also with an error. */
  eventNotify(event: Handle, signal: Handle): void
  /** Whether the last record has completed; throws the error of the work before it. */
  eventQuery(event: Handle): boolean
  eventWait(event: Handle, signal: Handle, timeoutMs: number): void

  copyH2d(
    stream: Handle,
    memory: Handle,
    memoryOffset: number,
    buffer: Handle,
    bufferOffset: number,
    bytes: number,
  ): void
  /**
   * `height` rows of `width` bytes, row r from `bufferOffset + r * bufferPitch` to `memoryOffset + r * memoryPitch`; offsets and
   * pitches in bytes. Copies nothing where width or height is 0. Throws `internal` where a pitch is less than the width or a row
   * lies outside; what happens later stays with the stream (`file_changed`, `device_error`), as with `copyH2d`.
   */
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
  ): void
  /**
   * As many `copyH2d2d` as there are pieces, in any order: none may overlap what another writes. The device waits once instead of
   * once for each. A piece that is refused says which one it is; then none is copied.
   */
  copyH2dBatch(stream: Handle, pieces: readonly H2dPiece[]): void
  copyDevice(stream: Handle, dst: Handle, src: Handle, pieces: readonly CopyPiece[]): void

  groupCreate(members: number): Handle
  groupJoin(group: Handle, member: number, stream: Handle, memory: Handle): void
  groupBroadcast(group: Handle, member: number, root: number, offset: number, bytes: number): void
  groupAbort(group: Handle): void
  groupDestroy(group: Handle): void

  /**
   * 128 bytes that one rank makes and every other one gets.
   *
   * @param sharers most members that will have the same device
   * @param processes how many processes the members will be in; the host library needs UCX for more than one
   * @throws NativeError where there is no NCCL (UCX), or none that can do that, with the reason
   */
  communicatorId(sharers: number, processes?: number): Uint8Array
  /** Each member's own, once every member has come. Blocks. */
  communicatorCreate(place: CommunicatorPlace, signal: Handle, timeoutMs: number): Handle
  communicatorBroadcast(
    communicator: Handle,
    stream: Handle,
    memory: Handle,
    root: number,
    offset: number,
    bytes: number,
  ): void
  communicatorAbort(communicator: Handle): void
  communicatorDestroy(communicator: Handle): void

  /** Reads of other processes' host memory. */
  readonly p2p: P2p

  /** The ref-counter file of torch's `rebuild_cuda_tensor`; `name` is `/ckpt-...`. */
  refcounterCreate(): { refcounter: Handle; name: string }
  refcounterDestroy(refcounter: Handle): void
}

/** What a rank is in a communicator. */
export interface CommunicatorPlace {
  readonly id: Uint8Array
  readonly device: number
  readonly members: number
  /** From 0. */
  readonly member: number
  /** Members that have this device, of whatever process. */
  readonly sharers: number
}

/** One member of the update group: one device of this daemon (or of the reference engine). */
export interface RankInfo {
  readonly rank: number
  /** Device index in the native library. */
  readonly device: number
  readonly deviceName: string
  /** Key of the engine worker in a map: `GPU-<uuid>`, with `#<rank>` when ranks share the device. */
  readonly key: string
  readonly uuid: string
  /** Where the rank's thread and its memory are to be; -1: anywhere, because the machine has one node or does not tell. */
  readonly numaNode: number
  /** RDMA devices that its reads of other hosts' memory go over; absent: whatever UCX finds. */
  readonly networkDevices?: readonly NetworkDeviceInfo[]
}

export interface NetworkDeviceInfo {
  /** Such as `mlx5_0`. */
  readonly name: string
  readonly bytesPerSecond: number
}
