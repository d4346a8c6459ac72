import { isIP } from 'node:net'
import { CkptError } from '@ckpt/core/api/errors'
import type { PollItem, ZmqContext, ZmqMonitor, ZmqSocket } from '@ckpt/cuda'
import type { TcpAddress } from '../options.ts'
import type { ClusterKeys } from './keys.ts'

/** Pieces of up to 256 KiB that libzmq keeps for one peer, in either direction: signs of life queue behind them. */
const QUEUE_PIECES = 64
/** Above any piece, below what a stranger's frame could do. */
const FRAME_BYTES = 16 * 2 ** 20
/** A leader's followers may come all at once. */
const BACKLOG = 4096
const RECONNECT_MS = 100
const RECONNECT_MS_MAX = 1000
const CONNECT_MS = 5000
/** For the last words of a daemon that closes. */
const LINGER_MS = 200

/** What a socket has for its loop. */
export type Arrival<R> =
  | { readonly type: 'frames'; readonly route: R; readonly frames: Uint8Array[] }
  /** Of a follower's one connection. */
  | { readonly type: 'connected' | 'disconnected' }
  /** A handshake has failed. */
  | { readonly type: 'refused' }

/** A ROUTER or a DEALER as the cluster uses it. */
export interface ClusterSocket<R> {
  readonly leads: boolean
  readonly address: string
  readonly pollItems: readonly PollItem[]
  /** @throws CkptError `engine_protocol` on a message of too many frames */
  next(): Arrival<R> | null
  send(route: R, frames: readonly Uint8Array[]): 'sent' | 'full' | 'gone'
  /** Drops the connection with everything that is left in it, and makes a new one. */
  reconnect(): void
  close(): void
}

/** The leader's. A route is the text of the id that libzmq gives a connection. */
export class LeaderSocket implements ClusterSocket<string> {
  readonly leads = true
  readonly #socket: ZmqSocket
  readonly #monitor: ZmqMonitor
  readonly address: string

  /** @throws CkptError `cannot_listen` */
  constructor(context: ZmqContext, leader: TcpAddress, { leader: keys }: ClusterKeys) {
    this.#socket = context.socket('ROUTER')
    bound(this.#socket)
    this.#socket.setOption('router_mandatory', 1)
    this.#socket.setOption('backlog', BACKLOG)
    this.#socket.setOption('curve_server', 1)
    this.#socket.setKey('curve_secretkey', keys.secret)
    // a name may be that of a service or a loopback address on this host: then, as torch's store does, on every interface
    const host = isIP(leader.host) === 0 ? '*' : leader.host
    this.#socket.setOption('ipv6', isIP(leader.host) === 4 ? 0 : 1)
    this.#monitor = this.#socket.monitor()
    try {
      this.#socket.bind(endpoint({ host, port: leader.port }))
    } catch (error) {
      throw new CkptError(
        'cannot_listen',
        `the leader cannot listen for its followers: ${(error as Error).message}`,
      )
    }
    this.address = this.#socket.lastEndpoint()
  }

  get pollItems(): readonly PollItem[] {
    return [this.#socket, this.#monitor]
  }

  next(): Arrival<string> | null {
    const message = this.#socket.recv()
    if (message === null) return this.#nextRefused()
    const [route, ...frames] = message
    return { type: 'frames', route: Buffer.from(route!).toString('latin1'), frames }
  }

  #nextRefused(): Arrival<string> | null {
    for (let event = this.#monitor.next(); event !== null; event = this.#monitor.next()) {
      if (event.event === 'refused') return { type: 'refused' }
    }
    return null
  }

  send(route: string, frames: readonly Uint8Array[]): 'sent' | 'full' | 'gone' {
    return this.#socket.sendTo(Buffer.from(route, 'latin1'), frames)
  }

  /** Its followers' connections are theirs to make. */
  reconnect(): void {}

  close(): void {
    this.#monitor.close()
    this.#socket.setOption('linger', LINGER_MS)
    this.#socket.close()
  }
}

/** A follower's: at most one connection, and nothing is kept for one that is not there. */
export class FollowerSocket implements ClusterSocket<null> {
  readonly leads = false
  readonly address: string
  readonly #context: ZmqContext
  readonly #keys: ClusterKeys
  readonly #ipv6: boolean
  #socket!: ZmqSocket
  #monitor!: ZmqMonitor

  constructor(context: ZmqContext, leader: TcpAddress, keys: ClusterKeys) {
    this.#context = context
    this.#keys = keys
    this.#ipv6 = isIP(leader.host) === 6
    this.address = endpoint(leader)
    this.#open()
  }

  #open(): void {
    this.#socket = this.#context.socket('DEALER')
    bound(this.#socket)
    this.#socket.setOption('immediate', 1)
    this.#socket.setOption('reconnect_ivl', RECONNECT_MS)
    this.#socket.setOption('reconnect_ivl_max', RECONNECT_MS_MAX)
    this.#socket.setOption('connect_timeout', CONNECT_MS)
    this.#socket.setOption('ipv6', this.#ipv6 ? 1 : 0)
    this.#socket.setKey('curve_serverkey', this.#keys.leader.public)
    this.#socket.setKey('curve_secretkey', this.#keys.follower.secret)
    this.#socket.setKey('curve_publickey', this.#keys.follower.public)
    this.#monitor = this.#socket.monitor()
    this.#socket.connect(this.address)
  }

  get pollItems(): readonly PollItem[] {
    return [this.#socket, this.#monitor]
  }

  next(): Arrival<null> | null {
    // what came before the connection ended is read first
    const frames = this.#socket.recv()
    if (frames !== null) return { type: 'frames', route: null, frames }
    for (let event = this.#monitor.next(); event !== null; event = this.#monitor.next()) {
      if (event.event !== 'other') return { type: event.event }
    }
    return null
  }

  send(_route: null, frames: readonly Uint8Array[]): 'sent' | 'full' {
    return this.#socket.send(frames) ? 'sent' : 'full'
  }

  reconnect(): void {
    this.#monitor.close()
    this.#socket.close()
    this.#open()
  }

  close(): void {
    this.#monitor.close()
    this.#socket.setOption('linger', LINGER_MS)
    this.#socket.close()
  }
}

function bound(socket: ZmqSocket): void {
  socket.setOption('sndhwm', QUEUE_PIECES)
  socket.setOption('rcvhwm', QUEUE_PIECES)
  socket.setOption('maxmsgsize', FRAME_BYTES)
}

function endpoint({ host, port }: TcpAddress): string {
  return `tcp://${isIP(host) === 6 ? `[${host}]` : host}:${port}`
}
