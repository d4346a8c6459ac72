import {
  CkptError,
  chromeTrace,
  type EngineMapAnswer,
  type EngineMapQuery,
  type Failure,
  NODES_MAX,
  type StatusAnswer,
  type Trace,
  type UpdateEvent,
  type UpdateReport,
  type UpdateRequest,
  type UpdateState,
} from '@ckpt/core'
import { type Library, openLibrary } from '@ckpt/cuda'
import { Journal, type JournalDocument } from './journal.ts'
import { log } from '../log.ts'
import { RankPool } from '../rank/pool.ts'
import { ranksSpin } from '../rank/spin.ts'
import { StopFlag } from '../rank/stop-flag.ts'
import { leaseGathered } from '../registry/lease.ts'
import type { Registry } from '../registry/registry.ts'
import { Leader, type LeaderParts } from '../remote/leader.ts'
import type { LeaderPost } from '../remote/messages.ts'
import { NodeEngines } from '../remote/node-engines.ts'
import { NodeMarks } from '../remote/node-marks.ts'
import { NodeServer } from '../remote/node-server.ts'
import { enginesHere } from '../../engines/host.ts'
import type { Ranks } from '../rank/handle.ts'
import type { DaemonOptions, HeldVersion, RankInfo } from '../types.ts'
import { Communicators, mostSharers } from './communicators.ts'
import { DeviceLoss } from './device-loss.ts'
import { DirectCosts } from './direct-costs.ts'
import { engineMap } from './engine-map.ts'
import { EngineBook } from './engines.ts'
import { IdleCollection } from '../idle-collection.ts'
import { isIdle, isWorking, Measuring } from './measuring.ts'
import { Planner } from './plan.ts'
import { UpdateQueue } from './queue.ts'
import { RateBook } from './rates.ts'
import type { RunContext } from './run-context.ts'
import { recoverFrom } from './recovery.ts'
import { EngineSockets } from './sockets.ts'
import { makeSpec } from './spec.ts'
import { takeMarks } from './stop-torn.ts'

const ENGINES_HERE = enginesHere(process.env.CKPT_ENGINE_TOKEN ?? null)

/** An update that was accepted. */
export interface UpdateHandle {
  readonly id: string
  /** Rejects with a CkptError; the state of the update then carries the engines' reports. */
  readonly done: Promise<UpdateReport>
}

export type UpdatesStatus = Pick<
  StatusAnswer,
  'devices' | 'ranks' | 'engines' | 'broadcast' | 'running_update' | 'queued'
> & { readonly quarantined_bytes: number }

/** The updates of one daemon: one at a time, the others wait their turn. */
export interface Updates {
  /** Ends what a dead predecessor left: engines that wait, sockets; restores the marks of engines. */
  recover(): Promise<void>
  /** Makes the plan of an update of what was registered, unless an update runs. Does not wait, and throws nothing. */
  prepare(name: string): void
  /**
   * The daemon serves. Where ranks spin they rehearse updates now; from now on devices whose rates are not known are measured when
   * there is nothing else to do. Does not wait.
   */
  begin(): void
  /** Throws at once what is wrong with the request (400, 403, 404, 409, 429, 503). */
  start(name: string, request: UpdateRequest): UpdateHandle
  /** Throws `update_not_found`. The last 100 ended updates are remembered. */
  state(id: string): UpdateState
  /** Begins with the state of now and ends after `done` or `failed`. Throws `update_not_found`. */
  events(id: string): AsyncIterable<UpdateEvent>
  /** What an update that has ended did when. Throws `update_not_found`, also when that is not kept any more. */
  trace(id: string): Trace
  /** Ends an update; without effect when it has ended. Throws `update_not_found`. */
  abort(id: string, reason?: string): UpdateState
  status(): UpdatesStatus
  /**
   * Where an engine has told its weights lie. Throws `not_found` where it has told nothing, or not of that tensor; `update_running`
   * when a rank has not answered for five seconds.
   */
  engineMap(query: EngineMapQuery): Promise<EngineMapAnswer>
  /** Settles when a device is lost: the daemon must then close and exit with status 4. */
  readonly deviceLost: Promise<Failure>
  /** The other daemons, where this one leads some. */
  readonly leader: Leader | null
  /** What its leader's updates use, where this one follows. */
  readonly node: NodeServer | null
  /** Aborts what runs, releases the engines, ends the rank workers. */
  close(reason: string): Promise<void>
}

/** A daemon's place among several. */
export type ClusterPlace =
  /** `listens`: where others can join; null: that cannot be told. */
  | {
      readonly role: 'leader'
      readonly nodes: number
      readonly listens: () => string | null
    }
  /** `post` tells the leader, while there is one. */
  | { readonly role: 'follower'; readonly post: (post: LeaderPost) => void }

/**
 * Starts the rank Workers.
 *
 * @param place null: the daemon is alone
 * @throws CkptError `native_missing` and what the devices say
 */
export async function createUpdates(
  options: DaemonOptions,
  registry: Registry,
  place: ClusterPlace | null = null,
): Promise<Updates> {
  const sockets = await EngineSockets.open(options.stateDir)
  const { journal, left } = await Journal.open(options.stateDir, sockets.dir)
  const rates = await RateBook.open(options.stateDir, options.library.kind, options.broadcast)
  const library = openLibrary(options.library)
  if (options.broadcast === 'nccl') requireNccl(library, options.ranks)
  const spins = ranksSpin(options.spin, options.ranks.length)
  // none goes on while the Workers start
  let busy = () => false
  const loss = new DeviceLoss(() => busy())
  const failed = (failure: Failure) => loss.take(failure)
  const watcher = {
    failed,
    dead: failed,
    left: (address: string) => void journal.left(address),
  }
  const pool = await RankPool.start(options.library, library, options.ranks, watcher, spins)
  const held = { options, library, registry, sockets, journal, left, rates, pool }
  const updates = new DaemonUpdates({ ...held, spins, loss, place })
  busy = () => updates.busy
  return updates
}

/** @throws CkptError `not_supported` */
function requireNccl(library: Library, ranks: readonly RankInfo[]): void {
  try {
    library.communicatorId(mostSharers(ranks))
  } catch (error) {
    const { code, message } = CkptError.wrap(error)
    throw new CkptError(code, `--broadcast nccl: ${message}`)
  }
}

interface Parts {
  readonly options: DaemonOptions
  readonly library: Library
  readonly registry: Registry
  readonly sockets: EngineSockets
  readonly journal: Journal
  readonly left: JournalDocument | null
  readonly rates: RateBook
  readonly pool: RankPool
  /** Whether ranks do. */
  readonly spins: boolean
  /** Is told of whatever fails on a rank. */
  readonly loss: DeviceLoss
  readonly place: ClusterPlace | null
}

function leaderOf(
  { place, registry, pool, sockets }: Parts,
  told: Pick<LeaderParts, 'lost' | 'joined' | 'gone'>,
): Leader | null {
  if (place?.role !== 'leader') return null
  const address = (rank: number) => sockets.address(rank)
  const { nodes, listens } = place
  return new Leader({ registry, pool, address, nodes, listens, ...told })
}

function requireLeader(leader: Leader | null): Leader {
  if (leader === null) throw new Error('there is one daemon only')
  return leader
}

class DaemonUpdates implements Updates {
  readonly leader: Leader | null
  readonly node: NodeServer | null
  readonly #parts: Parts
  readonly #ranks: Ranks
  readonly #book: EngineBook
  readonly #planner: Planner
  readonly #queue: UpdateQueue
  readonly #measuring: Measuring
  readonly #collection: IdleCollection
  /** Stopped: there is something better to do. */
  readonly #rehearsal = new StopFlag()
  /** What was registered last. */
  #prepared: HeldVersion | null = null
  readonly #closing = new AbortController()
  #closed: Promise<void> | null = null

  constructor(parts: Parts) {
    this.#parts = parts
    this.#book = new EngineBook(parts.journal)
    this.#planner = new Planner(parts.options, parts.rates)
    const { pool, rates, loss } = parts
    this.leader = leaderOf(parts, {
      lost: (ranks, failure) => this.#queue.lose(ranks, failure),
      gone: (guest) => void this.#book.forgetNode(guest).catch(() => {}),
      joined: (node, marks) => {
        const host = requireLeader(this.leader).engines(node)
        return takeMarks(this.#book, node, marks, host, this.#closing.signal)
      },
    })
    this.#ranks = this.leader?.ranks ?? pool
    this.#queue = new UpdateQueue(this.#context(), (failure) => {
      // a rank of this daemon has said so itself, one of another is that daemon's affair
      if (failure !== null && failure.rank === undefined) loss.take(failure)
      loss.idle()
      this.#measuring.restart()
      this.#collection.restart()
    })
    // a follower's work is the leader's
    this.#collection = new IdleCollection(
      () => !isWorking(this.#queue, parts.registry) && !this.node?.busy,
    )
    this.#measuring = new Measuring({
      pool,
      rates,
      idle: () => isIdle(this.#queue, pool, parts.registry),
      // an update would find another plan than the one that was made when its checkpoint was registered
      measured: () => this.#preparePlan(),
      failed: (failure) => loss.take(failure),
    })
    this.node = this.#nodeServer()
  }

  #context(): RunContext {
    const { options, library, registry, rates, journal, sockets } = this.#parts
    const communicators = new Communicators(options.idleCommunicatorMs)
    const { leader } = this
    const ranks = this.#ranks
    return {
      options,
      library,
      rates,
      directCosts: new DirectCosts(rates, () => ranks.links),
      journal,
      book: this.#book,
      planner: this.#planner,
      pool: ranks,
      sockets: leader?.ranks ?? sockets,
      lease: async (name, update) =>
        leader === null ? leaseGathered(registry, name) : leader.versions.lease(name, update),
      communicatorsOf: (links) =>
        options.broadcast === 'nccl' || links.some(({ node }) => node !== 0) ? communicators : null,
      engineHost: (node) => (node === 0 ? ENGINES_HERE : requireLeader(leader).engines(node)),
      closing: this.#closing.signal,
    }
  }

  #nodeServer(): NodeServer | null {
    const { place, options, registry, pool, journal, sockets, loss } = this.#parts
    if (place?.role !== 'follower') return null
    const busy = (now: boolean) => {
      for (const one of [this.#measuring, this.#collection]) {
        if (now) one.pause()
        else one.restart()
      }
      if (!now) loss.idle()
    }
    const engines = new NodeEngines(ENGINES_HERE, options.allowedEngines)
    const marks = new NodeMarks(this.#book, ENGINES_HERE, this.#closing.signal)
    const parts = { registry, pool, journal, socketDir: sockets.dir, engines, busy, marks }
    return new NodeServer(parts, place.post)
  }

  get deviceLost(): Promise<Failure> {
    return this.#parts.loss.told
  }

  /** Whether an update goes on, of this daemon or of its leader. */
  get busy(): boolean {
    return this.#queue.runningId !== null || this.node?.busy === true
  }

  begin(): void {
    this.#rehearse()
    this.#measuring.begin()
  }

  #rehearse(): void {
    const { spins, pool, sockets, loss } = this.#parts
    if (!spins) return
    const stop = this.#rehearsal.memory
    for (const link of pool.links) {
      const { rank } = link.rank
      const address = sockets.address(rank)
      link.request({ type: 'rehearse', address, stop }).catch((error: unknown) => {
        // updates do without
        const { failure, message } = CkptError.wrap(error)
        log.debug('rank {rank} could not rehearse: {message}', { rank, message })
        loss.take(failure)
      })
    }
  }

  async recover(): Promise<void> {
    const { left, pool, journal } = this.#parts
    if (left === null) return
    const { left: waiting } = await recoverFrom(left, pool, this.#book, journal)
    const { pid } = left
    for (const address of waiting) {
      log.warn('an engine of the dead daemon {pid} still waits at {address}', { pid, address })
    }
  }

  start(name: string, request: UpdateRequest): UpdateHandle {
    const { options, registry } = this.#parts
    if (this.node !== null) throw new CkptError('not_supported', 'this daemon follows another one')
    const spec = makeSpec(name, request, options, this.#ranks)
    // says now what is wrong with the checkpoint; the version is chosen when its turn comes
    if (this.leader === null) registry.lease(name).release(false)
    this.#rehearsal.stop()
    this.#measuring.pause()
    this.#collection.pause()
    const record = this.#queue.add(spec, request.if_busy)
    for (const { spec: engine, failure } of spec.leftOut) {
      const { url } = engine
      log.warn('update {id} leaves {url} out: {message}', { id: record.id, url, ...failure })
    }
    const giveBack = registry.claim(name)
    record.done.then(giveBack, giveBack)
    return { id: record.id, done: record.done }
  }

  prepare(name: string): void {
    this.#measuring.restart()
    if (this.#queue.runningId !== null) return
    try {
      const lease = this.#parts.registry.lease(name)
      // a plan is made of names and sizes: the memory may go meanwhile
      lease.release(false)
      this.#prepared = lease.version
      this.#preparePlan()
    } catch (error) {
      if (!(error instanceof CkptError)) throw error
    }
  }

  #preparePlan(): void {
    const { links } = this.#parts.pool
    if (this.#prepared === null || this.#queue.runningId !== null) return
    // of one of several daemons it is a part of a checkpoint
    if (this.#parts.place !== null) return
    if (links.some(({ dead }) => dead !== null)) return
    // the update tells what is wrong
    this.#planner.prepare(this.#prepared, links).catch(() => {})
  }

  state(id: string): UpdateState {
    return this.#queue.record(id).state
  }

  events(id: string): AsyncIterable<UpdateEvent> {
    return this.#queue.record(id).events()
  }

  trace(id: string): Trace {
    const { timeline, ended } = this.#queue.record(id)
    if (timeline !== null) return chromeTrace(timeline)
    const why = ended ? 'is not kept any more' : 'is there when it has ended'
    throw new CkptError('update_not_found', `the trace of update ${id} ${why}`)
  }

  abort(id: string, reason?: string): UpdateState {
    const message = reason ? `aborted: ${reason}` : 'aborted on request'
    return this.#queue.abort(id, { code: 'aborted', message })
  }

  /** All ranks but guests'. */
  get #counted(): RankInfo[] {
    const links = this.#ranks.links.filter(({ node }) => node < NODES_MAX)
    return links.map(({ rank }) => rank)
  }

  /** Free bytes are those that the rank Workers saw last; idle ones are asked again for the next call. */
  status(): UpdatesStatus {
    const { pool, rates } = this.#parts
    const devices = new Map<number, StatusAnswer['devices'][number]>()
    for (const link of pool.links) {
      if (!link.busy && link.dead === null) link.readMemory().catch(() => {})
      const { device, deviceName, uuid, numaNode } = link.rank
      const { freeBytes, totalBytes } = link.memory
      devices.set(device, {
        index: device,
        name: deviceName,
        uuid,
        free_bytes: freeBytes,
        total_bytes: totalBytes,
        h2d: rates.h2d(uuid),
        ...(numaNode >= 0 && { numa_node: numaNode }),
      })
    }
    return {
      devices: [...devices.values()],
      ranks: this.#counted.map(({ rank, device, key }) => ({ rank, device, key })),
      engines: this.#book.status(rates),
      broadcast: rates.broadcast(this.#counted),
      running_update: this.#queue.runningId,
      queued: this.#queue.queued,
      quarantined_bytes: pool.quarantinedBytes,
    }
  }

  engineMap(query: EngineMapQuery): Promise<EngineMapAnswer> {
    return engineMap({ links: this.#ranks.links, queue: this.#queue }, query)
  }

  close(reason: string): Promise<void> {
    this.#closed ??= this.#close(reason)
    return this.#closed
  }

  async #close(reason: string): Promise<void> {
    const { pool, sockets, journal, rates } = this.#parts
    this.#rehearsal.stop()
    this.#measuring.close()
    this.#collection.pause()
    await this.#queue.close(reason)
    if (this.node?.busy) await this.node.lose({ code: 'shutting_down', message: reason })
    await this.#book.settled()
    this.#closing.abort(new CkptError('shutting_down', reason))
    await pool.close()
    await sockets.close()
    await journal.close()
    await rates.close()
  }
}
