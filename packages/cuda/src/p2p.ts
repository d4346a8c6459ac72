import { STATUS_OK } from './generated.ts'
import { cString, cText, encodeP2pPieces } from './structs.ts'
import type { SymbolName } from './symbols.ts'
import type { Handle, P2pPiece } from './types.ts'

/** More than any address or key has (`ckpt_p2p_address`). */
const FRAME_BYTES_MAX = 65536
const TEXT_BYTES = 64

/**
 * How a peer's memory is read: `rdma` and `cma` without the peer's doing, `shm` (on one machine) and `emulated` (TCP) by messages to
 * a thread of its library.
 */
export type P2pTransport = 'rdma' | 'cma' | 'shm' | 'emulated'

/**
 * Reads of other processes' host memory: one method per `ckpt_p2p_...` function of `ckpt.h`, where each is described. The bytes of
 * addresses and keys are secrets of those who may read.
 *
 * @example
 * const owner = library.p2p.open('')
 * const key = library.p2p.share(owner, buffer)
 * const address = library.p2p.address(owner)
 * // in another process, which got both
 * const peer = library.p2p.connect(library.p2p.open(''), address)
 * const remote = library.p2p.attach(peer, key)
 * library.p2p.copyRemote(stream, memory, 0, remote, 0, 4096)
 */
export interface P2p {
  /** `devices`: as `UCX_NET_DEVICES`, `''` for what the process is set to. Throws `not_supported` without UCX. */
  open(devices: string): Handle
  /** Ends every read, from any thread. */
  close(p2p: Handle): void
  address(p2p: Handle): Uint8Array
  /**
   * Registers a whole buffer and gives the key to it. What maps a file is read for its peers by messages, whatever the transport: once
   * its lease is broken they get `file_changed`. Blocks.
   */
  share(p2p: Handle, buffer: Handle): Uint8Array
  unshare(p2p: Handle, buffer: Handle): void
  /** Does not wait for the peer. */
  connect(p2p: Handle, address: Uint8Array): Handle
  /** Ends every read from the peer, from any thread. */
  disconnect(peer: Handle): void
  attach(peer: Handle, key: Uint8Array): Handle
  detach(remote: Handle): void
  transport(peer: Handle): P2pTransport
  /** As `copyH2d`, out of a peer's memory; a lost peer stays with the stream as `device_error`. */
  copyRemote(
    stream: Handle,
    memory: Handle,
    memoryOffset: number,
    remote: Handle,
    remoteOffset: number,
    bytes: number,
  ): void
  /**
   * Starts reading pieces, of one peer or several, into a buffer (none that maps a file). They come in any order, several at once: none
   * may overlap what another writes. `signal` (0: none) wakes when it has ended, with an error or without. Throws `internal` for a
   * range outside; whatever happens later is `readQuery`'s.
   */
  readStart(pieces: readonly P2pPiece[], buffer: Handle, signal: Handle): Handle
  /**
   * Whether every byte is there. Throws what ended the read: `node_lost` for a lost peer, `aborted` after `disconnect` or `close`; by
   * then nothing writes to the buffer any more.
   */
  readQuery(read: Handle): boolean
  /** Leaves out what is not under way yet and waits for what is, which `disconnect` and `close` end. */
  readDestroy(read: Handle): void
}

type Guard = (symbol: SymbolName, ...args: (number | Uint8Array | Uint32Array)[]) => number

export class FfiP2p implements P2p {
  readonly #guard: Guard
  readonly #u32 = new Uint32Array(new ArrayBuffer(4))
  readonly #frame = new Uint8Array(new ArrayBuffer(FRAME_BYTES_MAX))

  constructor(guard: Guard) {
    this.#guard = guard
  }

  #handleOf(symbol: SymbolName, ...args: (number | Uint8Array)[]): Handle {
    this.#guard(symbol, ...args, this.#u32)
    return this.#u32[0] ?? 0
  }

  #frameOf(symbol: SymbolName, ...args: number[]): Uint8Array {
    const length = this.#handleOf(symbol, ...args, this.#frame, this.#frame.length)
    return this.#frame.slice(0, length)
  }

  open(devices: string): Handle {
    return this.#handleOf('ckpt_p2p_open', cString(devices))
  }

  close(p2p: Handle): void {
    this.#guard('ckpt_p2p_close', p2p)
  }

  address(p2p: Handle): Uint8Array {
    return this.#frameOf('ckpt_p2p_address', p2p)
  }

  share(p2p: Handle, buffer: Handle): Uint8Array {
    return this.#frameOf('ckpt_p2p_share', p2p, buffer)
  }

  unshare(p2p: Handle, buffer: Handle): void {
    this.#guard('ckpt_p2p_unshare', p2p, buffer)
  }

  connect(p2p: Handle, address: Uint8Array): Handle {
    return this.#handleOf('ckpt_p2p_connect', p2p, address, address.length)
  }

  disconnect(peer: Handle): void {
    this.#guard('ckpt_p2p_disconnect', peer)
  }

  attach(peer: Handle, key: Uint8Array): Handle {
    return this.#handleOf('ckpt_p2p_attach', peer, key, key.length)
  }

  detach(remote: Handle): void {
    this.#guard('ckpt_p2p_detach', remote)
  }

  transport(peer: Handle): P2pTransport {
    const text = new Uint8Array(new ArrayBuffer(TEXT_BYTES))
    this.#guard('ckpt_p2p_transport', peer, text, text.length)
    return cText(text) as P2pTransport
  }

  copyRemote(
    stream: Handle,
    memory: Handle,
    memoryOffset: number,
    remote: Handle,
    remoteOffset: number,
    bytes: number,
  ): void {
    this.#guard('ckpt_copy_remote', stream, memory, memoryOffset, remote, remoteOffset, bytes)
  }

  readStart(pieces: readonly P2pPiece[], buffer: Handle, signal: Handle): Handle {
    const encoded = encodeP2pPieces(pieces)
    return this.#handleOf('ckpt_p2p_read_start', encoded, pieces.length, buffer, signal)
  }

  readQuery(read: Handle): boolean {
    return this.#guard('ckpt_p2p_read_query', read) === STATUS_OK
  }

  readDestroy(read: Handle): void {
    this.#guard('ckpt_p2p_read_destroy', read)
  }
}
