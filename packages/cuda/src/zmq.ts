import { toArrayBuffer, type Pointer } from 'bun:ffi'
import { CkptError } from '@ckpt/core/api/errors'
import { openLibzmq, type ZmqCalls } from './libzmq.ts'
import { cString, cText } from './structs.ts'
import { checkKey, checkKeyText } from './zmq-keys.ts'

const EINTR = 4
const EAGAIN = 11
const EHOSTUNREACH = 113
/** Numbers from here on are libzmq's own. */
const ZMQ_HAUSNUMERO = 156384712
/** The context is terminated. */
const ETERM = ZMQ_HAUSNUMERO + 53

const TYPES = { PAIR: 0, REQ: 3, REP: 4, DEALER: 5, ROUTER: 6 } as const
export type ZmqType = keyof typeof TYPES

/** Options with their number in zmq.h and their width in bytes. */
const OPTIONS = {
  linger: [17, 4],
  reconnect_ivl: [18, 4],
  backlog: [19, 4],
  reconnect_ivl_max: [21, 4],
  maxmsgsize: [22, 8],
  sndhwm: [23, 4],
  rcvhwm: [24, 4],
  router_mandatory: [33, 4],
  immediate: [39, 4],
  ipv6: [42, 4],
  curve_server: [47, 4],
  ipc_filter_pid: [58, 4],
  ipc_filter_uid: [59, 4],
  ipc_filter_gid: [60, 4],
  handshake_ivl: [66, 4],
  connect_timeout: [79, 4],
} as const
export type ZmqOption = keyof typeof OPTIONS

/** Options that are keys of CURVE. */
const KEY_OPTIONS = { curve_publickey: 48, curve_secretkey: 49, curve_serverkey: 50 } as const
export type ZmqKeyOption = keyof typeof KEY_OPTIONS

const LAST_ENDPOINT = 32
const EVENTS = 15
const POLLIN = 1
const POLLOUT = 2
const DONTWAIT = 1
const SNDMORE = 2
const POLL_ITEM_BYTES = 16
const MESSAGE_BYTES = 64

/** The most bytes of one frame: tensor lists of 100,000 tensors stay far below. libzmq disconnects a peer that sends more. */
export const FRAME_MAX_BYTES = 256 * 2 ** 20
/** The most frames of one message that is received. */
const FRAMES_MAX = 64
/** The most retries of one call that signals interrupt. */
const EINTR_MAX = 100
/** The most retries of one call that fails although the socket says that it is ready. */
const READY_MAX = 10

const MONITOR_CONNECTED = 0x1000
const MONITOR_DISCONNECTED = 0x0200
/** Handshakes that failed: without detail, by the protocol, by authentication. */
const MONITOR_REFUSED = 0x0800 | 0x2000 | 0x4000

function fail(calls: ZmqCalls, what: string, code = calls.zmq_errno()): CkptError {
  if (code === ETERM) return new CkptError('shutting_down', `${what}: the context is closed`)
  return new CkptError('internal', `${what}: ${calls.zmq_strerror(code)}`)
}

/** Only these: the events of every attempt to connect would fill a queue that is read late. */
const MONITOR_EVENTS = MONITOR_CONNECTED | MONITOR_DISCONNECTED | MONITOR_REFUSED

let monitors = 0

/**
 * A libzmq context; one per thread, used by that thread only.
 *
 * @example
 * const context = new ZmqContext()
 * const socket = context.socket('DEALER')
 * socket.bind('ipc:///run/ckpt/rank-0')
 */
export class ZmqContext {
  readonly #calls = openLibzmq()
  readonly #context: number
  readonly #sockets = new Set<ZmqSocket>()
  #closed = false

  constructor() {
    this.#context = this.#calls.zmq_ctx_new()
    if (!this.#context) throw fail(this.#calls, 'zmq_ctx_new')
  }

  /** A socket with linger 0 and bounded frames. */
  socket(type: ZmqType): ZmqSocket {
    if (this.#closed) throw new CkptError('shutting_down', 'zmq_socket: the context is closed')
    const pointer = this.#calls.zmq_socket(this.#context, TYPES[type])
    if (!pointer) throw fail(this.#calls, 'zmq_socket')
    const socket = new ZmqSocket(this, this.#calls, pointer, type)
    this.#sockets.add(socket)
    return socket
  }

  /** Called by a socket that closes. */
  forget(socket: ZmqSocket): void {
    this.#sockets.delete(socket)
  }

  /** Closes its sockets, then the context. Does not block, since every socket has linger 0 unless it was changed. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const socket of this.#sockets) socket.close()
    // A signal is the only reason for it to fail.
    for (let tries = 0; tries < EINTR_MAX; tries++) {
      if (this.#calls.zmq_ctx_term(this.#context) === 0) return
    }
  }
}

/** A libzmq socket; never blocks. A message is a list of frames. */
export class ZmqSocket {
  readonly #context: ZmqContext
  readonly #calls: ZmqCalls
  readonly #type: ZmqType
  readonly #message = new Uint8Array(new ArrayBuffer(MESSAGE_BYTES))
  #pointer: number

  constructor(context: ZmqContext, calls: ZmqCalls, pointer: number, type: ZmqType) {
    this.#context = context
    this.#calls = calls
    this.#pointer = pointer
    this.#type = type
    this.setOption('linger', 0)
    this.setOption('maxmsgsize', FRAME_MAX_BYTES)
  }

  /** Address of the native socket, for {@link zmqPoll}. */
  get pointer(): number {
    if (this.#pointer === 0) throw new CkptError('internal', `the ${this.#type} socket is closed`)
    return this.#pointer
  }

  bind(address: string): void {
    this.#endpoint('zmq_bind', address)
  }

  unbind(address: string): void {
    this.#endpoint('zmq_unbind', address)
  }

  connect(address: string): void {
    this.#endpoint('zmq_connect', address)
  }

  disconnect(address: string): void {
    this.#endpoint('zmq_disconnect', address)
  }

  #endpoint(
    symbol: 'zmq_bind' | 'zmq_unbind' | 'zmq_connect' | 'zmq_disconnect',
    address: string,
  ): void {
    if (this.#calls[symbol](this.pointer, cString(address)) !== 0) {
      throw fail(this.#calls, `${symbol} ${address}`)
    }
  }

  /** The address that was bound last, with what `*` or port 0 became. */
  lastEndpoint(): string {
    const text = new Uint8Array(new ArrayBuffer(1024))
    const length = new BigUint64Array(new ArrayBuffer(8)).fill(BigInt(text.length))
    if (this.#calls.zmq_getsockopt(this.pointer, LAST_ENDPOINT, text, length) !== 0) {
      throw fail(this.#calls, 'zmq_getsockopt')
    }
    return cText(text)
  }

  /** Before `bind` or `connect`, except `linger`. Times in milliseconds. */
  setOption(name: ZmqOption, value: number): void {
    const [number, bytes] = OPTIONS[name]
    if (!Number.isSafeInteger(value)) throw new RangeError(`${name} must be an integer`)
    const encoded =
      bytes === 8
        ? new BigInt64Array(new ArrayBuffer(8)).fill(BigInt(value))
        : new Int32Array(new ArrayBuffer(4)).fill(value)
    if (this.#calls.zmq_setsockopt(this.pointer, number, encoded, bytes) !== 0) {
      throw fail(this.#calls, `zmq_setsockopt ${name}`)
    }
  }

  /** A key of CURVE, before `bind` or `connect`: 32 bytes, or the 40 characters of their Z85 text. */
  setKey(name: ZmqKeyOption, key: Uint8Array | string): void {
    // libzmq wants the text with its terminating zero, or the bytes
    const encoded = typeof key === 'string' ? cString(checkKeyText(key)) : checkKey(key)
    const bytes = encoded.byteLength
    if (this.#calls.zmq_setsockopt(this.pointer, KEY_OPTIONS[name], encoded, bytes) !== 0) {
      throw fail(this.#calls, `zmq_setsockopt ${name}`)
    }
  }

  /**
   * Of a ROUTER with `router_mandatory`: queues all frames for one peer. `full`: it cannot take them now, and nothing was
   * queued; `gone`: its connection has ended.
   *
   * @param route first frame of what this peer has sent
   */
  sendTo(route: Uint8Array, frames: readonly Uint8Array[]): 'sent' | 'full' | 'gone' {
    if (this.#sendFrame(route, true) < 0) {
      const code = this.#calls.zmq_errno()
      if (code >= ZMQ_HAUSNUMERO) throw fail(this.#calls, 'zmq_send', code)
      // another number may be that of a system call of the runtime in between: the caller tries again
      return code === EHOSTUNREACH ? 'gone' : 'full'
    }
    // once the route was taken the others are, too; of a connection that ends meanwhile they are dropped
    for (let i = 0; i < frames.length; i++) this.#sendLater(frames[i]!, i < frames.length - 1)
    return 'sent'
  }

  /**
   * Queues all frames. False, and nothing queued, when no peer can take them now, also when the peer went away between two
   * frames: the next call begins a new message.
   */
  send(frames: readonly Uint8Array[]): boolean {
    for (let i = 0; i < frames.length; i++) {
      const more = i < frames.length - 1
      if (i === 0 ? this.#sendFirst(frames[0]!, more) : this.#sendLater(frames[i]!, more)) continue
      // libzmq has taken back the frames before. A DEALER now drops every frame up to one that ends the message.
      if (i > 0 && more && this.#type === 'DEALER') this.#sendLater(NOTHING.subarray(1), false)
      return false
    }
    return true
  }

  #sendFirst(frame: Uint8Array, more: boolean): boolean {
    return this.#retried(POLLOUT, 'zmq_send', () => this.#sendFrame(frame, more)) !== null
  }

  /**
   * False when the message cannot be completed, whatever errno says. Never tried again: another peer that has come meanwhile
   * would get a message without its beginning. (Without waiting, `zmq_send` is not interrupted.)
   */
  #sendLater(frame: Uint8Array, more: boolean): boolean {
    if (this.#sendFrame(frame, more) >= 0) return true
    const code = this.#calls.zmq_errno()
    if (code >= ZMQ_HAUSNUMERO) throw fail(this.#calls, 'zmq_send', code)
    return false
  }

  #sendFrame(frame: Uint8Array, more: boolean): number {
    // An empty typed array has no address.
    const bytes = frame.length === 0 ? NOTHING : frame
    return this.#calls.zmq_send(this.pointer, bytes, frame.length, DONTWAIT | (more ? SNDMORE : 0))
  }

  /** All frames of the next message, or null when there is none. */
  recv(): Uint8Array[] | null {
    const frames: Uint8Array[] = []
    for (let i = 0; i < FRAMES_MAX; i++) {
      const frame = this.#recvFrame()
      if (frame === null && i === 0) return null
      if (frame === null) throw new CkptError('internal', 'zmq_msg_recv: the message was cut off')
      frames.push(frame.bytes)
      if (!frame.more) return frames
    }
    throw new CkptError('engine_protocol', `a message has more than ${FRAMES_MAX} frames`)
  }

  #recvFrame(): { bytes: Uint8Array; more: boolean } | null {
    const message = this.#message
    this.#calls.zmq_msg_init(message)
    try {
      const received = this.#retried(POLLIN, 'zmq_msg_recv', () =>
        this.#calls.zmq_msg_recv(message, this.pointer, DONTWAIT),
      )
      if (received === null) return null
      return { bytes: this.#copyMessage(), more: this.#calls.zmq_msg_more(message) === 1 }
    } finally {
      this.#calls.zmq_msg_close(message)
    }
  }

  #copyMessage(): Uint8Array {
    const bytes = Number(this.#calls.zmq_msg_size(this.#message))
    if (bytes === 0) return new Uint8Array(0)
    const pointer = this.#calls.zmq_msg_data(this.#message) as Pointer
    return new Uint8Array(toArrayBuffer(pointer, 0, bytes)).slice()
  }

  /**
   * Repeats an interrupted call; null on EAGAIN. Between the call and `zmq_errno` the runtime may have made system calls that
   * changed errno: where it is not libzmq's own, the socket itself is asked whether the call would have to wait.
   */
  #retried(events: number, what: string, call: () => number): number | null {
    let readyTries = 0
    for (let tries = 0; tries < EINTR_MAX; tries++) {
      const result = call()
      if (result >= 0) return result
      const code = this.#calls.zmq_errno()
      if (code === EAGAIN) return null
      if (code === EINTR) continue
      if (code >= ZMQ_HAUSNUMERO) throw fail(this.#calls, what, code)
      if ((this.#events() & events) === 0) return null
      if (++readyTries > READY_MAX) throw fail(this.#calls, what, code)
    }
    throw new CkptError('internal', `${what}: interrupted ${EINTR_MAX} times`)
  }

  #events(): number {
    const value = new Int32Array(new ArrayBuffer(4))
    const length = new BigUint64Array(new ArrayBuffer(8)).fill(4n)
    if (this.#calls.zmq_getsockopt(this.pointer, EVENTS, value, length) !== 0) {
      throw fail(this.#calls, 'zmq_getsockopt')
    }
    return value[0] ?? 0
  }

  /** Connections and disconnections of this socket (TCP and IPC; `inproc` has none). Call it before `bind` or `connect`. */
  monitor(): ZmqMonitor {
    const address = `inproc://ckpt-monitor-${++monitors}-${this.pointer}`
    if (this.#calls.zmq_socket_monitor(this.pointer, cString(address), MONITOR_EVENTS) !== 0) {
      throw fail(this.#calls, 'zmq_socket_monitor')
    }
    const pair = this.#context.socket('PAIR')
    // libzmq's own thread blocks when the queue is full.
    pair.setOption('rcvhwm', 0)
    pair.connect(address)
    return new ZmqMonitor(this, pair)
  }

  /** Called by its monitor when that closes. */
  endMonitor(): void {
    if (this.#pointer !== 0) this.#calls.endMonitor(this.#pointer)
  }

  close(): void {
    if (this.#pointer === 0) return
    this.#calls.zmq_close(this.#pointer)
    this.#pointer = 0
    this.#context.forget(this)
  }
}

const NOTHING = new Uint8Array(new ArrayBuffer(1))

export interface ZmqMonitorEvent {
  /** `connected`: the handshake with a peer is complete, on either side; `refused`: it has failed. */
  readonly event: 'connected' | 'disconnected' | 'refused' | 'other'
  readonly address: string
}

export class ZmqMonitor {
  readonly #socket: ZmqSocket
  readonly #pair: ZmqSocket

  constructor(socket: ZmqSocket, pair: ZmqSocket) {
    this.#socket = socket
    this.#pair = pair
  }

  get pointer(): number {
    return this.#pair.pointer
  }

  /** The next event, or null when there is none. */
  next(): ZmqMonitorEvent | null {
    const frames = this.#pair.recv()
    if (frames === null) return null
    const [head, address] = frames
    if (head === undefined || head.length < 6 || address === undefined) {
      throw new CkptError('internal', 'a monitor event of unknown form')
    }
    const number = new DataView(head.buffer, head.byteOffset).getUint16(0, true)
    return { event: eventName(number), address: cText(address) }
  }

  close(): void {
    this.#socket.endMonitor()
    this.#pair.close()
  }
}

function eventName(number: number): ZmqMonitorEvent['event'] {
  if (number === MONITOR_CONNECTED) return 'connected'
  if (number === MONITOR_DISCONNECTED) return 'disconnected'
  return (number & MONITOR_REFUSED) !== 0 ? 'refused' : 'other'
}

/** A socket, a monitor, or a file descriptor such as that of a signal. */
export type PollItem = ZmqSocket | ZmqMonitor | { readonly fd: number }

/**
 * Waits until one of the items is readable, at most `timeoutMs` (0: does not wait), and says which are. Blocks the thread: in a
 * Worker only, except with 0. With `spin` it looks again and again instead of sleeping, and takes a processor meanwhile.
 */
export function zmqPoll(items: readonly PollItem[], timeoutMs: number, spin = false): boolean[] {
  if (!Number.isSafeInteger(timeoutMs) || timeoutMs < 0) {
    throw new RangeError('timeoutMs must be a whole number of milliseconds')
  }
  const calls = openLibzmq()
  const view = new DataView(new ArrayBuffer(POLL_ITEM_BYTES * Math.max(1, items.length)))
  for (const [i, item] of items.entries()) {
    const base = i * POLL_ITEM_BYTES
    if ('fd' in item) view.setInt32(base + 8, item.fd, true)
    else view.setBigUint64(base, BigInt(item.pointer), true)
    view.setInt16(base + 12, POLLIN, true)
  }
  const endMs = performance.now() + timeoutMs
  let strange = 0
  for (let tries = 0; tries < EINTR_MAX; ) {
    const leftMs = Math.max(0, Math.ceil(endMs - performance.now()))
    const ready = calls.zmq_poll(view, items.length, spin ? 0 : leftMs)
    if (ready > 0 || (ready === 0 && (!spin || leftMs === 0))) break
    if (ready === 0) continue
    tries++
    const code = calls.zmq_errno()
    // Another number than EINTR may be that of a system call of the runtime in between: then it does not come again.
    if (code >= ZMQ_HAUSNUMERO) throw fail(calls, 'zmq_poll', code)
    if (code !== EINTR && ++strange > READY_MAX) throw fail(calls, 'zmq_poll', code)
  }
  return items.map((_, i) => view.getInt16(i * POLL_ITEM_BYTES + 14, true) !== 0)
}
