import { CkptError, DEFAULT_RATES, type Failure } from '@ckpt/core'
import type { ClusterNode } from '@ckpt/core/cluster/membership'
import type { EngineHost } from '../../engines/host.ts'
import { RankPool } from '../rank/pool.ts'
import type { StartThread } from '../rank/thread.ts'
import type { Registry } from '../registry/registry.ts'
import { Leader } from '../remote/leader.ts'
import {
  CALL_LIMIT_MS,
  type LeaderPost,
  NodeDescription,
  type NodePost,
  type NodeRequest,
} from '../remote/messages.ts'
import { NodeEngines } from '../remote/node-engines.ts'
import { NodeMarks } from '../remote/node-marks.ts'
import { NodeServer } from '../remote/node-server.ts'
import { pack, unpack } from '../remote/pack.ts'
import type { DaemonOptions, RankInfo } from '../types.ts'
import { Communicators } from '../updates/communicators.ts'
import { DirectCosts } from '../updates/direct-costs.ts'
import { engineKey } from '../updates/engine-key.ts'
import { EngineBook } from '../updates/engines.ts'
import type { EngineMark, Journal } from '../updates/journal.ts'
import { Planner } from '../updates/plan.ts'
import { UpdateQueue } from '../updates/queue.ts'
import type { RateBook } from '../updates/rates.ts'
import { marksOf } from '../updates/recovery.ts'
import type { RunContext } from '../updates/run-context.ts'
import { takeMarks } from '../updates/stop-torn.ts'
import type { SimulatedRegistry } from './checkpoint.ts'
import type { Disk } from './disk.ts'
import type { SimulatedLibrary } from './library.ts'
import type { Network, NetworkEnd, NetworkEvents } from './network.ts'
import type { Random } from './random.ts'
import { type Life, type SimulatedTime } from './time.ts'
import { SimulatedThread } from './thread.ts'
import type { Witness } from './violation.ts'
import type { Wires } from './wires.ts'

/** What one daemon of a simulation is made of. */
export interface DaemonParts {
  readonly time: SimulatedTime
  readonly random: Random
  readonly witness: Witness
  readonly wires: Wires
  readonly network: Network
  readonly life: Life
  readonly node: number
  readonly nodes: number
  /** Tells this process from those before it. */
  readonly incarnation: number
  readonly options: DaemonOptions
  readonly library: SimulatedLibrary
  readonly registry: SimulatedRegistry
  readonly engines: EngineHost
  /** Of this process and those before it. */
  readonly disk: Disk
  /** The most that a message between two threads takes. */
  readonly delayMs: number
}

/** One daemon, of the daemon's own code but for the Worker that joins the cluster. */
export class SimulatedDaemon {
  readonly parts: DaemonParts
  readonly threads: SimulatedThread[] = []
  pool: RankPool | null = null
  leader: Leader | null = null
  node: NodeServer | null = null
  queue: UpdateQueue | null = null
  book: EngineBook | null = null
  /** Its place in the cluster; null: it is alone. */
  end: NetworkEnd<unknown> | null = null
  readonly #closing = new AbortController()

  constructor(parts: DaemonParts) {
    this.parts = parts
  }

  get life(): Life {
    return this.parts.life
  }

  /** Its ranks can be used. */
  get ready(): boolean {
    return this.pool !== null
  }

  start(): void {
    this.parts.time.as(this.life, () => void this.#start())
  }

  async #start(): Promise<void> {
    const { options, library, time, random, witness, wires, delayMs } = this.parts
    const starts: StartThread = (start, events) => {
      const place = { time, random, witness, library, wires, delayMs }
      const thread = new SimulatedThread(place, start, events)
      this.threads.push(thread)
      return thread
    }
    const { asLibrary } = library
    const { ranks } = options
    const pool = await RankPool.start(options.library, asLibrary, ranks, undefined, false, starts)
    this.pool = pool
    if (this.parts.node === 0) this.#lead(pool)
    else this.#follow(pool)
  }

  #lead(pool: RankPool): void {
    const { nodes, registry, network, life, incarnation } = this.parts
    const address = (rank: number) => `ipc://${this.#socketDir}/rank-${rank}-${this.#sockets++}`
    if (nodes > 1) {
      const held = registry as unknown as Registry
      this.leader = new Leader({
        registry: held,
        pool,
        address,
        nodes,
        lost: (ranks, failure) => this.queue?.lose(ranks, failure),
        joined: (node, marks) => this.#takeMarks(node, marks),
        gone: () => {},
      })
      this.end = network.lead(life, `leader ${incarnation}`, nodes, this.#events) as never
    }
    const [journal, book] = this.#book()
    this.book = book
    const context = this.#context(pool, journal, address)
    this.queue = new UpdateQueue(context, () => {})
  }

  #sockets = 0

  get #socketDir(): string {
    const { node, incarnation } = this.parts
    return `/nonexistent/ckpt-simulation/${node}-${incarnation}`
  }

  #context(pool: RankPool, journal: Journal, address: (rank: number) => string): RunContext {
    const { options, library, registry, engines } = this.parts
    const { leader } = this
    const communicators = new Communicators(options.idleCommunicatorMs)
    const rates = { ratesOf: () => DEFAULT_RATES, learn: async () => {} } as unknown as RateBook
    const ranks = leader?.ranks ?? pool
    return {
      options,
      library: library.asLibrary,
      rates,
      journal,
      book: this.book as EngineBook,
      planner: new Planner(options, rates),
      directCosts: new DirectCosts(rates, () => ranks.links),
      pool: ranks,
      sockets: leader?.ranks ?? { address },
      lease: async (name, id) => leader?.versions.lease(name, id) ?? registry.lease(),
      communicatorsOf: (links) =>
        options.broadcast === 'nccl' || links.some((link) => link.node !== 0)
          ? communicators
          : null,
      engineHost: (node) => (node === 0 ? engines : (leader as Leader).engines(node)),
      closing: this.#closing.signal,
    }
  }

  /** With what the process before it has left. */
  #book(): [Journal, EngineBook] {
    const { disk, time, random } = this.parts
    const marks = marksOf(disk.written)
    const journal = disk.journal(time, random)
    const book = new EngineBook(journal)
    book.restore(marks, engineKey)
    return [journal, book]
  }

  async #takeMarks(node: number, marks: readonly EngineMark[]): Promise<void> {
    const { book, leader } = this
    if (book === null || leader === null) throw new Error('this daemon does not lead')
    await takeMarks(book, node, marks, leader.engines(node), this.#closing.signal)
  }

  #follow(pool: RankPool): void {
    const { network, life, incarnation, node, nodes, engines, registry } = this.parts
    const post = (told: LeaderPost) => {
      const [leader] = this.end?.membership.peers ?? []
      if (leader !== undefined) this.end?.post(leader, pack(told))
    }
    const [journal, book] = this.#book()
    this.book = book
    const server = {
      registry: registry as unknown as Registry,
      pool,
      journal,
      socketDir: this.#socketDir,
      engines: new NodeEngines(engines, null),
      marks: new NodeMarks(book, engines, new AbortController().signal),
      busy: () => {},
    }
    this.node = new NodeServer(server, post)
    const name = `follower ${node} ${incarnation}`
    this.end = network.follow(life, name, { nodeRank: node, nodes }, this.#events) as never
  }

  get #events(): NetworkEvents {
    return {
      joined: (node) => void this.#joined(node).catch(() => {}),
      lost: (node, failure) => this.#lost(node, failure),
      post: (node, message) => this.#take(node, message as NodePost | LeaderPost),
      request: async (_, message) => this.#answer(message as NodeRequest | { op: 'describe' }),
    }
  }

  async #joined(node: ClusterNode): Promise<void> {
    const { end, leader } = this
    if (leader === null || end === null) return
    const answer = await end.request(node, pack({ op: 'describe' }), CALL_LIMIT_MS)
    leader.joined(node.nodeRank, NodeDescription.assert(unpack(answer)), {
      request: (message, limitMs) => end.request(node, message, limitMs),
      post: (message) => end.post(node, message),
    })
  }

  #lost({ nodeRank }: ClusterNode, failure: Failure): void {
    this.leader?.lost(nodeRank, failure)
    void this.node?.lose(failure)
  }

  #take({ nodeRank }: ClusterNode, post: NodePost | LeaderPost): void {
    if (post.op === 'event' || post.op === 'progress' || post.op === 'settled') {
      this.leader?.take(nodeRank, post)
    } else this.node?.take(post)
  }

  async #answer(request: NodeRequest | { readonly op: 'describe' }): Promise<unknown> {
    if (this.node === null) throw new CkptError('not_supported', 'this daemon leads')
    return request.op === 'describe' ? this.node.description : this.node.answer(request)
  }

  /** The update of which it takes this engine to have a part; null: of none. */
  tornBy(url: string): string | null {
    return this.#mark(url)?.update_id ?? null
  }

  needsRestart(url: string): boolean {
    return this.#mark(url)?.restart_needed ?? false
  }

  #mark(url: string) {
    return this.book?.marks.find((mark) => mark.url === url)
  }

  /** Signals that others wait for are kept in memory until they abort. */
  close(): void {
    this.#closing.abort(new CkptError('shutting_down', 'the simulation is over'))
  }

  /** Its process ends. */
  kill(): void {
    this.life.end()
  }
}

export function ranksOf(node: number, devices: readonly number[]): RankInfo[] {
  return devices.map((device, rank) => {
    const uuid = `GPU-${node}-${device}`
    const sharing = devices.filter((other) => other === device).length
    const key = sharing === 1 ? uuid : `${uuid}#${rank}`
    return { rank, device, deviceName: 'simulated', key, uuid, numaNode: -1 }
  })
}
