import { CkptError, type Failure } from '@ckpt/core'
import { clockMs } from '../clock.ts'
import type { RankHandle } from '../rank/handle.ts'
import {
  type EngineAt,
  type OpenAnswer,
  type OpenOptions,
  type Peer,
  PROGRESS_BYTES,
  PROGRESS_SENT,
  type RankEvent,
  type RunOptions,
} from '../rank/messages.ts'
import type { HeldVersion } from '../types.ts'
import type { JournalConversation } from '../updates/journal.ts'
import type {
  LeaderPost,
  RanksHere,
  RemoteDirectOpen,
  RemoteMeeting,
  RemoteOpen,
  RemoteRankRequest,
  RemoteTell,
  RunPlace,
} from './messages.ts'
import type { NodeLeases } from './node-leases.ts'
import type { NodeParts } from './node-server.ts'

const PROGRESS_MS = 20
/** For an engine's worker to leave when the leader is gone. */
const LEAVE_MS = 10_000
const CLOSE_MS = 2000
/** Runs whose rings, or the answers of whose engines, may still be waited for. */
const NUMBERS_MAX = 1000
const IPC = 'ipc://'

type Opening<T extends 'open' | 'open_direct'> = Extract<RemoteRankRequest, { type: T }>

/** One rank in one run that the leader drives. */
interface RunHere {
  readonly link: RankHandle
  /** Its number here and at the leader. */
  readonly own: number
  readonly run: number
  readonly progress: Int32Array
  told: Int32Array
  readonly conversation: JournalConversation | null
  readonly updateId: string
  readonly engineAt: EngineAt | null
  /** Its engine's worker has everything. */
  finished: boolean
  readonly closed: PromiseWithResolvers<void>
  /** No copy of it reads the checkpoint any more. */
  readonly settled: PromiseWithResolvers<void>
  /** Its Worker was told to open. */
  opening: boolean
  /** Told to end before: the Worker would not know what. */
  aborted: Failure | null
}

/** An engine that has a part of this update. */
export type TornEngine = EngineAt & { readonly updateId: string }

export interface EndedRuns {
  /** Resolves when every run has closed, or was given up. */
  readonly closed: Promise<void>
  /** Engines that have a part of what the leader drove, when those have closed. */
  torn(): TornEngine[]
  /** Resolves when no copy of any run reads a checkpoint any more. */
  readonly settled: Promise<unknown>
  /** To be called when no engine works on its request any more. */
  answered(failure: Failure): void
}

/** The runs of this daemon's ranks that the leader drives. */
export class NodeRuns {
  readonly #parts: Pick<NodeParts, 'journal' | 'pool' | 'socketDir'>
  readonly #leases: NodeLeases
  readonly #post: (post: LeaderPost) => void
  readonly #running = new Map<RankHandle, RunHere>()
  /** A copy of them may still read the checkpoint. */
  readonly #unsettled = new Set<RunHere>()
  /** The leader has not told yet what their engines have answered; a ring may wait for that after its run. */
  readonly #unanswered = new Set<RunHere>()
  /** A leader that was started again counts anew, and the Workers do not know that. */
  readonly #numbers = new Map<number, number>()
  /** Of the last run of each rank: its number here, and what the rank and its peers say of it. */
  readonly #progress = new WeakMap<RankHandle, readonly [own: number, progress: Int32Array]>()
  #next = 1
  #timer: ReturnType<typeof setInterval> | null = null

  constructor(
    parts: Pick<NodeParts, 'journal' | 'pool' | 'socketDir'>,
    leases: NodeLeases,
    post: (post: LeaderPost) => void,
  ) {
    this.#parts = parts
    this.#leases = leases
    this.#post = post
  }

  open(link: RankHandle, request: Opening<'open'>): Promise<OpenAnswer> {
    const { options, meeting } = request
    const collective = this.#collectiveOf(options.run, meeting)
    return this.#open(link, request, (base) =>
      link.request({ type: 'open', options: { ...options, ...base, collective } }),
    )
  }

  #collectiveOf(run: number, meeting: RemoteMeeting | null): OpenOptions['collective'] {
    if (meeting === null) return null
    const { id, sharers, here } = meeting
    return { type: 'communicator', id, sharers, peers: this.#peersOf(run, here) }
  }

  #peersOf(run: number, here: RanksHere): (Peer | null)[] {
    return here.map((own) => (own === null ? null : this.#peerOf(run, own)))
  }

  #peerOf(run: number, rank: number): Peer {
    const link = this.#parts.pool.links.find((one) => one.rank.rank === rank)
    if (link === undefined) throw new CkptError('bad_request', `there is no rank ${rank}`)
    const progress = this.#progressOf(this.#numberOf(run), link).buffer as SharedArrayBuffer
    return { progress, signal: link.signal, board: link.board }
  }

  /** Of a rank in a run, whichever rank of this daemon is opened first. */
  #progressOf(own: number, link: RankHandle): Int32Array {
    const [of, known] = this.#progress.get(link) ?? [null, null]
    if (of === own && known !== null) return known
    const progress = new Int32Array(new SharedArrayBuffer(PROGRESS_BYTES))
    this.#progress.set(link, [own, progress])
    return progress
  }

  openDirect(link: RankHandle, request: Opening<'open_direct'>): Promise<OpenAnswer> {
    const { options, here } = request
    const peers = this.#peersOf(options.run, here)
    return this.#open(link, request, (base) =>
      link.request({ type: 'open_direct', options: { ...options, ...base, peers } }),
    )
  }

  async #open(
    link: RankHandle,
    { options, place }: Opening<'open' | 'open_direct'>,
    request: (
      base: Pick<RunOptions, 'run' | 'buffers' | 'readings' | 'progress' | 'deadlineMs'>,
    ) => Promise<OpenAnswer>,
  ): Promise<OpenAnswer> {
    const { lease, updateId } = this.#leases.of(place.lease)
    const version = lease?.version ?? null
    const running = this.#begin(link, options, updateId, version)
    const progress = running.progress.buffer as SharedArrayBuffer
    link.listen(running.own, 0, (event) => this.#take(running, event), progress)
    try {
      await this.#journal()
      if (running.aborted !== null) throw CkptError.from(running.aborted)
      running.opening = true
      const memory = memoryOf(version, place)
      const deadlineMs = clockMs() + place.leftMs
      const answer = await request({ run: running.own, ...memory, progress, deadlineMs })
      // the leader cannot use handles of this process
      return { ...answer, streams: [] }
    } catch (error) {
      link.unlisten()
      this.#unanswered.delete(running)
      this.#settle(running)
      this.#end(running)
      throw error
    }
  }

  #begin(
    link: RankHandle,
    { run, address, http, engineAt = null }: RemoteOpen | RemoteDirectOpen,
    updateId: string,
    version: HeldVersion | null,
  ): RunHere {
    if (this.#running.has(link)) throw new CkptError('internal', 'the rank is in a run already')
    if (address !== null && !address.startsWith(`${IPC}${this.#parts.socketDir}/`)) {
      throw new CkptError('bad_request', `${address} is not among this daemon's sockets`)
    }
    const rank = link.rank.rank
    const own = this.#numberOf(run)
    const engine = { dialect: null, engine_url: null, uds: null }
    const running: RunHere = {
      link,
      own,
      run,
      progress: this.#progressOf(own, link),
      told: new Int32Array(PROGRESS_BYTES / 4),
      conversation:
        address === null
          ? null
          : { address, rank, ...engine, update_id: updateId, version: version?.version ?? null },
      updateId,
      engineAt,
      finished: false,
      closed: Promise.withResolvers<void>(),
      settled: Promise.withResolvers<void>(),
      opening: false,
      aborted: null,
    }
    this.#running.set(link, running)
    this.#unsettled.add(running)
    if (http) this.#awaitAnswer(running)
    this.#timer ??= setInterval(() => this.tellProgress(), PROGRESS_MS)
    return running
  }

  #awaitAnswer(running: RunHere): void {
    this.#unanswered.add(running)
    const [oldest] = this.#unanswered
    if (this.#unanswered.size > NUMBERS_MAX && oldest !== undefined) this.#unanswered.delete(oldest)
  }

  #numberOf(run: number): number {
    const known = this.#numbers.get(run)
    if (known !== undefined) return known
    const own = this.#next++
    this.#numbers.set(run, own)
    const oldest = this.#numbers.keys().next()
    if (this.#numbers.size > NUMBERS_MAX && !oldest.done) this.#numbers.delete(oldest.value)
    return own
  }

  /** The engine's worker can connect from now on. */
  #journal(): Promise<void> {
    const conversations = [...this.#running.values()].flatMap(
      ({ conversation }) => conversation ?? [],
    )
    return this.#parts.journal.conversations(conversations)
  }

  tell(link: RankHandle, run: number, tell: RemoteTell): void {
    const own = this.#numbers.get(run)
    if (own === undefined) return
    switch (tell.type) {
      case 'begin':
        return link.begin(own)
      case 'announce':
        return link.announce(own)
      case 'copy':
        return link.copy(own, tell.fetch, tell.shares)
      case 'release':
        return link.release(own)
      case 'raise_abort':
        if (this.#running.get(link)?.own === own) link.raiseAbort()
        return
      case 'leave':
        return link.leave(own, tell.reason, tell.leaveMs)
      case 'abort':
        return this.#abort(link, own, tell.failure, tell.leaveMs)
      case 'http':
        for (const one of this.#unanswered) {
          if (one.link === link && one.own === own) this.#unanswered.delete(one)
        }
        return link.http(own, tell)
    }
  }

  #abort(link: RankHandle, own: number, failure: Failure, leaveMs: number): void {
    const running = this.#running.get(link)
    if (running?.own === own && !running.opening) running.aborted ??= failure
    else link.abort(own, failure, leaveMs)
  }

  #take(running: RunHere, event: RankEvent): void {
    const { link, own, run, progress } = running
    const rank = link.rank.rank
    // the leader cannot use handles of this process
    const told = event.type === 'begun' ? { ...event, streams: [] } : event
    running.told = progress.slice()
    this.#post({ op: 'event', rank, run, event: told, progress: running.told, nowMs: clockMs() })
    if (event.type === 'finished') running.finished = true
    if (event.type !== 'closed') return
    if (event.settled) this.#settle(running)
    else {
      void link.settled(own).then(() => {
        this.#settle(running)
        this.#post({ op: 'settled', rank, run })
      })
    }
    this.#end(running)
  }

  #settle(running: RunHere): void {
    this.#unsettled.delete(running)
    running.settled.resolve()
  }

  #end(running: RunHere): void {
    this.#running.delete(running.link)
    running.closed.resolve()
    if (this.#running.size > 0) return
    if (this.#timer !== null) clearInterval(this.#timer)
    this.#timer = null
    const { journal, pool } = this.#parts
    journal.ended((address) => pool.keeps(address)).catch(() => {})
  }

  /** What is new of it. */
  tellProgress(): void {
    for (const running of this.#running.values()) {
      const { link, run, progress, told } = running
      if (progress.every((value, i) => value === told[i])) continue
      running.told = progress.slice()
      this.#post({ op: 'progress', rank: link.rank.rank, run, progress: running.told })
    }
  }

  get any(): boolean {
    return this.#running.size > 0
  }

  endAll(failure: Failure): EndedRuns {
    const all = [...this.#running.values()]
    const unanswered = [...this.#unanswered]
    this.#unanswered.clear()
    for (const { link } of all) link.raiseAbort()
    for (const { link, own } of all) this.#abort(link, own, failure, LEAVE_MS)
    this.#numbers.clear()
    // nobody else would: a communicator is of no use without its other ranks
    for (const link of this.#parts.pool.links) {
      if (link.dead === null) link.request({ type: 'communicator_drop' }).catch(() => {})
    }
    const closed = Promise.all(all.map((one) => one.closed.promise))
    return {
      settled: Promise.all([...this.#unsettled].map((one) => one.settled.promise)),
      closed: Promise.race([closed, Bun.sleep(LEAVE_MS + CLOSE_MS)]).then(() => {}),
      torn: () =>
        all.flatMap(({ engineAt, updateId, finished, progress }) => {
          const sent = Atomics.load(progress, PROGRESS_SENT) > 0
          return engineAt !== null && sent && !finished ? [{ ...engineAt, updateId }] : []
        }),
      answered({ message }) {
        for (const { link, own } of unanswered) link.http(own, { ok: false, status: 0, message })
      },
    }
  }
}

/** Of each owner of all daemons: what of it lies here. */
function memoryOf(
  version: HeldVersion | null,
  { owners, firstOwner }: RunPlace,
): Pick<RunOptions, 'buffers' | 'readings'> {
  const buffers = Array.from({ length: owners }, () => new Uint32Array(0))
  const readings: RunOptions['readings'][number][] = buffers.map(() => null)
  for (const [i, own] of (version?.buffers ?? []).entries()) {
    buffers[firstOwner + i] = own as Uint32Array<ArrayBuffer>
    readings[firstOwner + i] = version?.readings[i] ?? null
  }
  return { buffers, readings }
}
