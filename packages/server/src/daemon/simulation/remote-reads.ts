import {
  type Library,
  NativeError,
  type P2pPiece,
  STATUS_ERR_ABORTED,
  STATUS_ERR_HANDLE,
} from '@ckpt/cuda'
import { STATUS_ERR_IO } from '@ckpt/cuda/generated'
import type { HostBuffers } from './host-buffers.ts'
import type { SharedDevices } from './shared-devices.ts'
import type { Life, Timer } from './time.ts'
import type { TracedMemory } from './traced-memory.ts'

/** Until a machine is given up that is gone without a word. */
const LOST_MS = 5000

interface Attached {
  readonly peer: number
  readonly buffer: number
}

interface Read {
  readonly peers: ReadonlySet<number>
  readonly into: TracedMemory
  readonly timer: Timer
  readonly tell: () => void
  ended: boolean
  error: NativeError | null
}

/** Reads of other hosts' memory. */
export class RemoteReads {
  readonly #shared: SharedDevices
  readonly #life: Life
  readonly #buffers: HostBuffers
  readonly #copyH2d: Library['copyH2d']
  readonly #raise: (signal: number) => void
  /** Connection, of which process's end. */
  readonly #peers = new Map<number, number>()
  readonly #attached = new Map<number, Attached>()
  readonly #reads = new Map<number, Read>()

  constructor(
    shared: SharedDevices,
    life: Life,
    buffers: HostBuffers,
    copyH2d: Library['copyH2d'],
    raise: (signal: number) => void,
  ) {
    this.#shared = shared
    this.#life = life
    this.#buffers = buffers
    this.#copyH2d = copyH2d
    this.#raise = raise
  }

  /** That were not given back. */
  get reads(): number {
    return this.#reads.size
  }

  open(): number {
    return this.#shared.handle()
  }

  close(p2p: number): void {
    for (const [peer, of] of this.#peers) if (of === p2p) this.disconnect(peer)
  }

  connect(p2p: number): number {
    const peer = this.#shared.handle()
    this.#peers.set(peer, p2p)
    return peer
  }

  /** Ends what is read of it. */
  disconnect(peer: number): void {
    this.#peers.delete(peer)
    for (const read of this.#reads.values()) {
      if (read.peers.has(peer)) this.#end(read, failure(STATUS_ERR_ABORTED, 'it was ended'))
    }
  }

  attach(peer: number, key: Uint8Array): number {
    const handle = this.#shared.handle()
    this.#attached.set(handle, { peer, buffer: bufferOf(key) })
    return handle
  }

  detach(remote: number): void {
    this.#attached.delete(remote)
  }

  transport(): string {
    return 'shm'
  }

  copyRemote(
    stream: number,
    memory: number,
    offset: number,
    remote: number,
    remoteOffset: number,
    bytes: number,
  ): void {
    const { buffer } = this.#of(remote)
    this.#copyH2d(stream, memory, offset, buffer, remoteOffset, bytes)
  }

  #of(remote: number): Attached {
    const attached = this.#attached.get(remote)
    if (attached !== undefined) return attached
    this.#shared.witness.violated(`what is read was detached: ${remote}`)
    throw failure(STATUS_ERR_HANDLE, `no remote ${remote}`)
  }

  readStart(pieces: readonly P2pPiece[], buffer: number, signal: number): number {
    const { time, random } = this.#shared
    const into = this.#buffers.memory(buffer)
    const from = pieces.map((piece) => ({ ...piece, ...this.#of(piece.remote) }))
    for (const { bufferOffset, bytes } of from) into.spoil(bufferOffset, bytes)
    const all = from.reduce((sum, { bytes }) => sum + bytes, 0)
    const isLost = () => from.some((one) => this.#shared.owners.get(one.buffer)?.alive === false)
    const ms = this.#shared.durationMs(all) + random.between(0, 1)
    const done = () => {
      if (isLost()) return this.#end(read, failure(STATUS_ERR_IO, 'the peer is lost'))
      for (const piece of from) {
        into.write(piece.bufferOffset, piece.bytes, piece.buffer, piece.remoteOffset)
      }
      this.#end(read, null)
    }
    const read: Read = {
      peers: new Set(from.map(({ peer }) => peer)),
      into,
      timer: time.after(isLost() ? LOST_MS : ms, done, this.#life),
      tell: () => this.#raise(signal),
      ended: false,
      error: null,
    }
    into.readers.add(read)
    const handle = this.#shared.handle()
    this.#reads.set(handle, read)
    return handle
  }

  #end(read: Read, error: NativeError | null): void {
    if (read.ended) return
    read.ended = true
    read.error = error
    read.timer.cancelled = true
    read.into.readers.delete(read)
    read.tell()
  }

  readQuery(handle: number): boolean {
    const read = this.#reads.get(handle)
    if (read === undefined) throw failure(STATUS_ERR_HANDLE, `no read ${handle}`)
    if (read.error !== null) throw read.error
    return read.ended
  }

  readDestroy(handle: number): void {
    const read = this.#reads.get(handle)
    if (read === undefined)
      return this.#shared.witness.violated(`read ${handle} has been given back`)
    if (!read.ended) this.#shared.witness.violated('a rank waits for a read that nobody has ended')
    this.#reads.delete(handle)
  }
}

function failure(status: number, words: string): NativeError {
  return new NativeError('ckpt_p2p_read_query', status, words)
}

/** What a reader of another host is told of a buffer. */
export function keyOf(buffer: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(buffer).buffer)
}

function bufferOf(key: Uint8Array): number {
  return new Uint32Array(key.slice().buffer)[0] as number
}
