import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads'
import { type ClusterNode, isSameSession } from '@ckpt/core/cluster/membership'
import { CkptError, type Failure } from '@ckpt/core/api/errors'
import { FailureBody } from '@ckpt/core/api/bounds'
import { MESSAGE_BYTES_MAX, PART_BYTES_MAX, PARTS_MAX } from '@ckpt/core/cluster/packets'
import { parseBody } from '@ckpt/core/api/parse-body'
import { type Handle, type Library, SIGNAL_USER } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { log } from '../log.ts'
import type {
  CarriedMessage,
  ClusterCommand,
  ClusterReport,
  ClusterWorkerStart,
} from './messages.ts'
import type { Cluster, ClusterEvents, ClusterMessage } from './types.ts'

const START_MS = 30_000
const CLOSE_MS = 3000

const encoder = new TextEncoder()
const decoder = new TextDecoder('utf-8', { fatal: true })

interface Waiting {
  readonly node: ClusterNode
  readonly timer: ReturnType<typeof setTimeout>
  resolve(message: ClusterMessage): void
  reject(error: CkptError): void
}

/** The main thread's end of the cluster's Worker. Nothing here blocks. */
export class ClusterLink implements Cluster {
  readonly nodeRank: number
  readonly nodes: number
  readonly #self: ClusterNode
  /** See {@link ClusterWorkerStart}. */
  readonly #lease = new SharedArrayBuffer(2 * Float64Array.BYTES_PER_ELEMENT)
  readonly #library: Library
  readonly #events: ClusterEvents
  readonly #worker: Worker
  readonly #port: MessagePort
  readonly #exited: Promise<void>
  readonly #started = Promise.withResolvers<void>()
  /** By node rank. */
  readonly #peers = new Map<number, ClusterNode>()
  readonly #waiting = new Map<number, Waiting>()
  #signal: Handle = 0
  #address = ''
  #epoch = 0
  /** A follower's. */
  #members: readonly ClusterNode[] = []
  #alone: string | null = null
  #nextId = 1
  /** Why there is no Worker any more. */
  #over: Failure | null = null

  /** @throws CkptError what keeps the Worker from starting, such as an address that cannot be bound */
  static async start(
    start: Omit<ClusterWorkerStart, 'port' | 'lease'>,
    library: Library,
    events: ClusterEvents,
  ): Promise<ClusterLink> {
    const link = new ClusterLink(start, library, events)
    const timer = setTimeout(() => link.#die('the cluster Worker did not start'), START_MS)
    try {
      await link.#started.promise
    } finally {
      clearTimeout(timer)
    }
    return link
  }

  private constructor(
    start: Omit<ClusterWorkerStart, 'port' | 'lease'>,
    library: Library,
    events: ClusterEvents,
  ) {
    this.nodeRank = start.nodeRank
    this.nodes = start.nodes
    const { incarnation, info } = start
    this.#self = { nodeRank: start.nodeRank, session: 0, incarnation, info }
    this.#library = library
    this.#events = events
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    this.#worker = new Worker(new URL('./worker.ts', import.meta.url), {
      workerData: { ...start, port: port2, lease: this.#lease } satisfies ClusterWorkerStart,
      transferList: [port2],
    })
    port1.on('message', (report: ClusterReport) => this.#take(report))
    this.#worker.on('error', (error) => this.#die(CkptError.wrap(error).message))
    this.#exited = new Promise((resolve) => {
      this.#worker.on('exit', () => {
        this.#die('the cluster Worker has ended')
        port1.close()
        resolve()
      })
    })
  }

  get isLeader(): boolean {
    return this.nodeRank === 0
  }

  get peers(): readonly ClusterNode[] {
    return [...this.#peers.values()].sort((a, b) => a.nodeRank - b.nodeRank)
  }

  get epoch(): number {
    return this.#epoch
  }

  get members(): readonly ClusterNode[] {
    return this.isLeader ? [this.#self, ...this.peers] : this.#members
  }

  get alone(): string | null {
    return this.#alone
  }

  get address(): string {
    return this.#address
  }

  async request(
    node: ClusterNode,
    message: ClusterMessage,
    limitMs: number,
  ): Promise<ClusterMessage> {
    if (!this.#lives(node)) throw CkptError.from(this.#lost(node, 'its session is over'))
    const blobs = encode(message)
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id)
        const late = `${this.#name(node)} has not answered within ${limitMs} ms`
        reject(new CkptError('update_timeout', late))
      }, limitMs)
      this.#waiting.set(id, { node, timer, resolve, reject })
      this.#send(node, 'request', id, blobs)
    })
  }

  post(node: ClusterNode, message: ClusterMessage): void {
    if (this.#lives(node)) this.#send(node, 'post', 0, encode(message))
  }

  async close(): Promise<void> {
    if (this.#over === null) {
      // when the Worker reads this it destroys its signal: from here on nothing may raise it
      this.#post({ type: 'close', reason: 'it is shutting down' })
      this.#dieOf({ code: 'shutting_down', message: 'the daemon is shutting down' })
    }
    const late = Bun.sleep(CLOSE_MS).then(() => 'late' as const)
    if ((await Promise.race([this.#exited, late])) === 'late') this.#terminate()
    this.#port.close()
  }

  #lives(node: ClusterNode): boolean {
    const peer = this.#peers.get(node.nodeRank)
    return peer !== undefined && isSameSession(peer, node)
  }

  #send(
    node: ClusterNode,
    kind: CarriedMessage['kind'],
    id: number,
    blobs: CarriedMessage['blobs'],
  ): void {
    const buffers = blobs.map(({ buffer }) => buffer)
    this.#post({ type: 'message', message: { node, kind, id, blobs } }, buffers)
  }

  #post(command: ClusterCommand, buffers: ArrayBuffer[] = []): void {
    if (this.#over !== null) return
    this.#port.postMessage(command, buffers)
    this.#library.signalRaise(this.#signal, SIGNAL_USER)
  }

  #take(report: ClusterReport): void {
    // what the Worker says while it closes concerns nobody any more
    if (this.#over !== null) return
    switch (report.type) {
      case 'ready':
        this.#signal = report.signal
        this.#address = report.address
        return this.#started.resolve()
      case 'joined':
        this.#epoch = report.epoch
        this.#peers.set(report.node.nodeRank, report.node)
        this.#alone = null
        return this.#events.joined(report.node)
      case 'lost':
        this.#epoch = report.epoch
        return this.#lose(report.node, report.reason)
      case 'members':
        this.#epoch = report.epoch
        this.#members = report.members
        return this.#events.changed?.(report.epoch, report.members)
      case 'message':
        return this.#receive(report.message)
      case 'alone':
        this.#alone = report.message
        return
      case 'warning':
        log.warn('cluster: {message}', { message: report.message })
        return
      case 'dead':
        this.#dieOf(report.failure)
        return this.#terminate()
    }
  }

  #receive(carried: CarriedMessage): void {
    const { node, kind, id } = carried
    if (!this.#lives(node) || this.#leaseIsOver(node)) return
    let message: ClusterMessage
    try {
      const [text, ...parts] = carried.blobs
      message = { body: JSON.parse(decoder.decode(text)), parts }
    } catch (error) {
      const { message: fault } = error as Error
      log.warn('cluster: a message of {name} was dropped: {fault}', {
        name: this.#name(node),
        fault,
      })
      return
    }
    if (kind === 'post') this.#events.post(node, message)
    else if (kind === 'request') void this.#answer(node, id, message)
    else this.#settle(node, kind, id, message)
  }

  /** The whole process may have stood still since its Worker took the message: the Worker finds that out as well. */
  #leaseIsOver(node: ClusterNode): boolean {
    if (this.isLeader) return false
    const [session, untilMs] = new Float64Array(this.#lease)
    return session !== node.session || clockMs() >= untilMs!
  }

  async #answer(node: ClusterNode, id: number, message: ClusterMessage): Promise<void> {
    let kind: 'answer' | 'refusal' = 'answer'
    let blobs: CarriedMessage['blobs']
    try {
      blobs = encode(await this.#events.request(node, message))
    } catch (error) {
      kind = 'refusal'
      blobs = encode({ body: CkptError.wrap(error).failure, parts: [] })
    }
    if (this.#lives(node)) this.#send(node, kind, id, blobs)
  }

  #settle(
    node: ClusterNode,
    kind: 'answer' | 'refusal',
    id: number,
    message: ClusterMessage,
  ): void {
    const waiting = this.#waiting.get(id)
    // of a request that was given up
    if (waiting === undefined || !isSameSession(waiting.node, node)) return
    this.#waiting.delete(id)
    clearTimeout(waiting.timer)
    if (kind === 'answer') waiting.resolve(message)
    else waiting.reject(refusalOf(message.body))
  }

  #lose(node: ClusterNode, reason: string): void {
    if (!this.#lives(node)) return
    this.#peers.delete(node.nodeRank)
    this.#members = []
    const failure = this.#lost(node, reason)
    if (!this.isLeader) this.#alone = failure.message
    this.#reject(failure, (waiting) => isSameSession(waiting.node, node))
    this.#events.lost(node, failure)
  }

  #lost(node: ClusterNode, reason: string): Failure {
    const code = node.nodeRank === 0 ? 'leader_lost' : 'node_lost'
    return { code, message: `${this.#name(node)} was lost: ${reason}` }
  }

  #name({ nodeRank, info }: ClusterNode): string {
    return nodeRank === 0 ? `the leader (node 0, ${info.host})` : `node ${nodeRank} (${info.host})`
  }

  #reject(failure: Failure, which: (waiting: Waiting) => boolean): void {
    for (const [id, waiting] of this.#waiting) {
      if (!which(waiting)) continue
      this.#waiting.delete(id)
      clearTimeout(waiting.timer)
      waiting.reject(CkptError.from(failure))
    }
  }

  #die(message: string): void {
    if (this.#over === null) log.error('cluster: {message}', { message })
    this.#dieOf({ code: 'internal', message })
    this.#terminate()
  }

  #dieOf(failure: Failure): void {
    if (this.#over !== null) return
    this.#over = failure
    this.#started.reject(CkptError.from(failure))
    this.#reject(failure, () => true)
    for (const node of this.peers) {
      this.#peers.delete(node.nodeRank)
      if (failure.code !== 'shutting_down') this.#events.lost(node, failure)
    }
    this.#members = []
  }

  #terminate(): void {
    this.#worker.unref()
    void this.#worker.terminate()
  }
}

/**
 * The caller keeps its parts, and may send them to others.
 *
 * @throws RangeError on more than the other side takes
 */
function encode({ body, parts }: ClusterMessage): CarriedMessage['blobs'] {
  const text = encoder.encode(JSON.stringify(body ?? null))
  const sizes = [text.length, ...parts.map(({ length }) => length)]
  const bytes = sizes.reduce((sum, size) => sum + size, 0)
  if (
    parts.length > PARTS_MAX ||
    bytes > MESSAGE_BYTES_MAX ||
    sizes.some((size) => size > PART_BYTES_MAX)
  ) {
    throw new RangeError(`a message of ${parts.length} parts and ${bytes} bytes is too large`)
  }
  return [new Uint8Array(text), ...parts.map((part) => new Uint8Array(part))]
}

function refusalOf(body: unknown): CkptError {
  try {
    return CkptError.from(parseBody(FailureBody, body))
  } catch (error) {
    const { message } = error as Error
    return new CkptError(
      'internal',
      `the other daemon refused with what cannot be read: ${message}`,
    )
  }
}
