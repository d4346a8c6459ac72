import { CkptError } from '@ckpt/core/api/errors'
import {
  type ClusterNode,
  isSameSession,
  type Membership,
  type MembershipEvent,
} from '@ckpt/core/cluster/membership'
import {
  type ForeignHello,
  type MessageStart,
  type Packet,
  type Piece,
  readPacket,
} from '@ckpt/core/cluster/packets'
import { clockMs } from '../clock.ts'
import { Inbox } from './inbox.ts'
import type { CarriedMessage, ClusterReport } from './messages.ts'
import { Outbox } from './outbox.ts'
import type { Arrival, ClusterSocket } from './sockets.ts'

/** What is sent or taken in one go, so that neither keeps the other waiting. */
const PIECES_AT_ONCE = 16
const ARRIVALS_AT_ONCE = 256
/** The most bytes that wait for one peer. */
const WAITING_BYTES_MAX = 2 ** 32
/** The most packets that wait for one peer beside its messages; later ones come again. */
const HELD_MAX = 16
/** The most complaints that are remembered. */
const SAID_MAX = 1000
/** Between two complaints about handshakes that fail at the leader. */
const HANDSHAKES_MS = 10_000
/** How soon a peer is tried again that could take no more. */
const FULL_MS = 1

const encoder = new TextEncoder()
const decoder = new TextDecoder('utf-8', { fatal: true })

interface Session {
  readonly node: ClusterNode
  readonly outbox: Outbox
  readonly inbox: Inbox
}

/** Where a loop says what has happened. */
export type Report = (report: ClusterReport, transfer?: readonly ArrayBuffer[]) => void

/** One side's state machine with its socket, in steps that do not block. */
export class ClusterLoop<R> {
  readonly #membership: Membership<R>
  readonly #socket: ClusterSocket<R>
  readonly #connected: (nowMs: number) => MembershipEvent<R>[]
  readonly #report: Report
  readonly #publish: () => void
  /** By node rank. */
  readonly #sessions = new Map<number, Session>()
  readonly #gone: R[] = []
  /** Packets that wait for a peer which was full. */
  readonly #held = new Map<R, Uint8Array[]>()
  /** What was said last about who cannot join: it is not said again and again. */
  readonly #said = new Map<string, string>()
  /** When a handshake has failed last, and when that was said last. */
  #refusedMs = Number.NEGATIVE_INFINITY
  #refusalSaidMs = Number.NEGATIVE_INFINITY
  #alone = ''

  /**
   * @param connected what a new connection means
   * @param publish is called before anything is reported, whenever the membership may have changed
   */
  constructor(
    membership: Membership<R>,
    socket: ClusterSocket<R>,
    connected: (nowMs: number) => MembershipEvent<R>[],
    report: Report,
    publish: () => void = () => {},
  ) {
    this.#publish = publish
    this.#membership = membership
    this.#socket = socket
    this.#connected = connected
    this.#report = report
  }

  /** Takes what has come, sends what can go. Returns in how many milliseconds the next step is due, if nothing comes before. */
  step(): number {
    this.#receive()
    this.#perform(this.#membership.tick(clockMs()))
    const sending = this.#flush()
    this.#loseGone()
    if (sending !== null) return sending
    return Math.max(0, Math.ceil(this.#membership.nextMs() - clockMs()))
  }

  /** Queues a message; of a session that is over it is dropped. */
  push(message: CarriedMessage): void {
    const session = this.#sessions.get(message.node.nodeRank)
    const { node } = message
    if (session === undefined || !isSameSession(session.node, node)) return
    session.outbox.push(message)
    if (session.outbox.bytes <= WAITING_BYTES_MAX) return
    const reason = `${session.outbox.bytes} bytes wait for it, which it does not take`
    this.#perform(this.#membership.end(clockMs(), node, reason))
  }

  close(reason: string): void {
    this.#perform(this.#membership.close(reason))
    this.#socket.close()
  }

  #receive(): void {
    for (let taken = 0; taken < ARRIVALS_AT_ONCE; taken++) {
      try {
        const arrival = this.#socket.next()
        if (arrival === null) return
        this.#take(arrival)
      } catch (error) {
        // a peer's fault ends nothing
        if (CkptError.wrap(error).code !== 'engine_protocol') throw error
        this.#warnOnce('malformed', `a message was dropped: ${(error as Error).message}`)
      }
    }
  }

  #take(arrival: Arrival<R>): void {
    switch (arrival.type) {
      case 'frames':
        return this.#takeFrames(arrival.route, arrival.frames)
      case 'connected':
        return this.#perform(this.#connected(clockMs()))
      case 'disconnected':
        return this.#perform(this.#membership.unreachable(clockMs(), null as R))
      case 'refused':
        return this.#handshakeFailed(clockMs())
    }
  }

  #handshakeFailed(nowMs: number): void {
    const { leads, address } = this.#socket
    this.#refusedMs = nowMs
    if (!leads) {
      const message = `the handshake with ${address} has failed: it has another cluster token, or is no leader`
      this.#warnOnce('handshake', message)
      return this.#isAlone(message)
    }
    if (nowMs < this.#refusalSaidMs + HANDSHAKES_MS) return
    this.#refusalSaidMs = nowMs
    const message = `a handshake at ${address} has failed: of a daemon with another cluster token, or of no daemon`
    this.#report({ type: 'warning', message })
  }

  /** A handshake that fails is an answer, of which the state machine hears nothing. */
  #unanswered(forMs: number): void {
    const { address } = this.#socket
    if (clockMs() < this.#refusedMs + forMs) return
    const message = `nobody answers at ${address}: is the daemon of node rank 0 running there?`
    this.#report({ type: 'warning', message: `${message} (${(forMs / 1000).toFixed(0)} s)` })
    this.#isAlone(message)
  }

  #isAlone(message: string): void {
    if (message === this.#alone) return
    this.#alone = message
    this.#report({ type: 'alone', message })
  }

  #takeFrames(route: R, [head, ...frames]: Uint8Array[]): void {
    const packet = readHead(head)
    if ('fault' in packet)
      return this.#warnOnce('malformed', `a message was dropped: ${packet.fault}`)
    this.#perform(this.#membership.receive(clockMs(), route, packet, frames))
    this.#loseGone()
  }

  #perform(events: readonly MembershipEvent<R>[]): void {
    this.#publish()
    for (const event of events) {
      switch (event.type) {
        case 'send':
          this.#send(event.route, event.packet)
          break
        case 'piece':
          this.#takePiece(event.node, event.piece, event.frames)
          break
        case 'refused':
          this.#refused(event)
          break
        case 'unanswered':
          this.#unanswered(event.forMs)
          break
        case 'reconnect':
          this.#held.clear()
          this.#socket.reconnect()
          break
        case 'joined':
          this.#said.clear()
          this.#alone = ''
          this.#sessions.set(event.node.nodeRank, {
            node: event.node,
            outbox: new Outbox(),
            inbox: new Inbox(),
          })
          this.#report(event)
          break
        case 'lost':
          this.#sessions.delete(event.node.nodeRank)
          this.#report(event)
          break
        case 'members':
          this.#report(event)
      }
    }
  }

  /** What a peer that is sent pieces cannot take just now goes before the next piece. A hello comes again by itself. */
  #send(route: R, packet: Packet): void {
    const frame = encoder.encode(JSON.stringify(packet))
    const held = this.#held.get(route)
    if (held !== undefined) {
      if (held.length < HELD_MAX) held.push(frame)
      return
    }
    const result = this.#socket.send(route, [frame])
    if (result === 'gone') this.#gone.push(route)
    if (result === 'full' && packet.type !== 'hello') this.#held.set(route, [frame])
  }

  #flushHeld(): void {
    for (const [route, frames] of this.#held) {
      while (frames.length > 0) {
        const result = this.#socket.send(route, [frames[0]!])
        if (result === 'full') break
        if (result === 'gone') {
          this.#gone.push(route)
          frames.length = 0
        }
        frames.shift()
      }
      if (frames.length === 0) this.#held.delete(route)
    }
  }

  /** Not where it is found out: the state machine is in the middle of another event then. */
  #loseGone(): void {
    for (let route = this.#gone.shift(); route !== undefined; route = this.#gone.shift()) {
      this.#perform(this.#membership.unreachable(clockMs(), route))
    }
  }

  #takePiece(node: ClusterNode, piece: Piece, frames: readonly Uint8Array[]): void {
    const session = this.#sessions.get(node.nodeRank)
    if (session === undefined || !isSameSession(session.node, node)) return
    try {
      const message = session.inbox.take(piece, frames)
      if (message === null) return
      const buffers = message.blobs.map(({ buffer }) => buffer)
      this.#report({ type: 'message', message: { node, ...message } }, buffers)
    } catch (error) {
      const reason = `it has sent what cannot be read: ${(error as Error).message}`
      this.#perform(this.#membership.end(clockMs(), node, reason))
    }
  }

  /** In how many milliseconds to send on; null: everything is on its way. */
  #flush(): number | null {
    this.#flushHeld()
    let soonest: number | null = this.#held.size > 0 ? FULL_MS : null
    for (const session of this.#sessions.values()) {
      for (let sent = 0; sent < PIECES_AT_ONCE && !session.outbox.empty; sent++) {
        const result = this.#sendPiece(session)
        if (result === 'sent') continue
        if (result === 'full') soonest ??= FULL_MS
        break
      }
      if (!session.outbox.empty && soonest === null) soonest = 0
    }
    return soonest
  }

  #sendPiece({ node, outbox }: Session): 'sent' | 'full' | 'gone' {
    const route = this.#membership.routeOf(node)
    const frames = outbox.next((start) => this.#head(node, start))
    if (route === undefined || frames === null) return 'gone'
    if (this.#held.has(route)) return 'full'
    const result = this.#socket.send(route, frames)
    if (result === 'sent') outbox.sent()
    if (result === 'gone') this.#gone.push(route)
    return result
  }

  #head(node: ClusterNode, start: MessageStart | null): Uint8Array | null {
    const packet = this.#membership.piece(node, start)
    return packet === null ? null : encoder.encode(JSON.stringify(packet))
  }

  #refused(event: Extract<MembershipEvent<R>, { type: 'refused' }>): void {
    const { nodeRank, host, code, message } = event
    this.#warnOnce(
      `${nodeRank} ${host}`,
      `node ${nodeRank} (${host}) may not join: ${message} (${code})`,
    )
    const { leads, address } = this.#socket
    if (!leads) this.#isAlone(`the leader at ${address} refuses this daemon: ${message}`)
  }

  #warnOnce(about: string, message: string): void {
    if (this.#said.get(about) === message) return
    if (this.#said.size >= SAID_MAX) this.#said.clear()
    this.#said.set(about, message)
    this.#report({ type: 'warning', message })
  }
}

function readHead(head: Uint8Array | undefined): Packet | ForeignHello | { fault: string } {
  try {
    return readPacket(JSON.parse(decoder.decode(head)))
  } catch (error) {
    return { fault: (error as Error).message }
  }
}
