import type { ZmqContext } from '@ckpt/cuda'
import type { Random } from './random.ts'
import type { Life, SimulatedTime } from './time.ts'

/** What an engine's worker has of its connection. */
export interface WorkerEnd {
  /** The messages come in order. */
  take(body: Uint8Array): void
}

type Arrival = { readonly link: 'connected' | 'disconnected' } | { readonly body: Uint8Array }

const CONNECT_AGAIN_MS = 100

/** The sockets between ranks and engines' workers. What is sent comes in order, some time later. */
export class Wires {
  readonly #time: SimulatedTime
  readonly #random: Random
  readonly #delayMs: number
  readonly #bound = new Map<string, SimulatedSocket>()
  /** Told of every message to a worker: where it is bound, what it is. */
  sent: (address: string, body: Uint8Array) => void = () => {}

  /** @param delayMs the most that a message is on its way */
  constructor(time: SimulatedTime, random: Random, delayMs: number) {
    this.#time = time
    this.#random = random
    this.#delayMs = delayMs
  }

  /** Of a thread that is woken by what comes. */
  context(life: Life, wake: () => void): ZmqContext {
    const socket = () => new SimulatedSocket(this, life, wake)
    const close = () => {}
    return { socket, close } as unknown as ZmqContext
  }

  get time(): SimulatedTime {
    return this.#time
  }

  delay(): number {
    return this.#random.between(0, this.#delayMs)
  }

  bind(address: string, socket: SimulatedSocket): void {
    this.#bound.set(address, socket)
  }

  unbind(address: string, socket: SimulatedSocket): void {
    if (this.#bound.get(address) === socket) this.#bound.delete(address)
  }

  /** A worker connects as libzmq does: again and again, until somebody is there. */
  connect(address: string, worker: WorkerEnd, life: Life): Wire {
    const wire = new Wire(this, worker, life)
    const tries = () => {
      if (wire.closed) return
      const socket = this.#bound.get(address)
      if (socket?.free) wire.attach(socket)
      else this.#time.after(CONNECT_AGAIN_MS, tries, life)
    }
    this.#time.after(this.delay(), tries, life)
    return wire
  }
}

/** One worker's connection. */
export class Wire {
  closed = false
  readonly #wires: Wires
  readonly #worker: WorkerEnd
  readonly #life: Life
  #socket: SimulatedSocket | null = null
  #upMs = 0
  #downMs = 0

  constructor(wires: Wires, worker: WorkerEnd, life: Life) {
    this.#wires = wires
    this.#worker = worker
    this.#life = life
  }

  /** Whoever was at the other end has closed it, or has died. */
  get isLost(): boolean {
    return this.#socket !== null && !this.#socket.isOpen
  }

  attach(socket: SimulatedSocket): void {
    this.#socket = socket
    socket.wire = this
    this.#up({ link: 'connected' })
  }

  reply(body: Uint8Array): void {
    this.#up({ body })
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    this.#up({ link: 'disconnected' })
  }

  #up(arrival: Arrival): void {
    const socket = this.#socket
    if (socket === null) return
    const { time } = this.#wires
    this.#upMs = Math.max(this.#upMs, time.nowMs + this.#wires.delay())
    time.at(this.#upMs, () => socket.arrive(this, arrival), socket.life)
  }

  /** To the worker. */
  down(body: Uint8Array): void {
    const { time } = this.#wires
    this.#downMs = Math.max(this.#downMs, time.nowMs + this.#wires.delay())
    const take = () => {
      if (!this.closed) this.#worker.take(body)
    }
    time.at(this.#downMs, take, this.#life)
  }
}

/** A rank's end: as much of a DEALER and its monitor as the daemon's code uses. */
class SimulatedSocket {
  readonly life: Life
  wire: Wire | null = null
  readonly #wires: Wires
  readonly #wake: () => void
  readonly #links: ('connected' | 'disconnected')[] = []
  readonly #bodies: Uint8Array[] = []
  #address = ''
  #peer = false
  #closed = false

  constructor(wires: Wires, life: Life, wake: () => void) {
    this.#wires = wires
    this.life = life
    this.#wake = wake
  }

  /** Whether a worker may connect. */
  get free(): boolean {
    return this.life.alive && this.wire === null
  }

  get isOpen(): boolean {
    return this.life.alive && !this.#closed
  }

  setOption(): void {}

  monitor() {
    const next = () => {
      const event = this.#links.shift()
      return event === undefined ? null : { event }
    }
    return { next, close() {} }
  }

  bind(address: string): void {
    this.#address = address
    this.#wires.bind(address, this)
  }

  arrive(wire: Wire, arrival: Arrival): void {
    if (this.wire !== wire) return
    if ('body' in arrival) this.#bodies.push(arrival.body)
    else {
      this.#links.push(arrival.link)
      this.#peer = arrival.link === 'connected'
      if (!this.#peer) this.wire = null
    }
    this.#wake()
  }

  send([, body]: readonly Uint8Array[]): boolean {
    if (!this.#peer || this.wire === null || body === undefined) return false
    this.#wires.sent(this.#address, body)
    this.wire.down(body)
    return true
  }

  recv(): Uint8Array[] | null {
    const body = this.#bodies.shift()
    return body === undefined ? null : [new Uint8Array(0), body]
  }

  close(): void {
    this.#closed = true
    this.#wires.unbind(this.#address, this)
  }
}
