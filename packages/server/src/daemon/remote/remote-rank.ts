import { CkptError, type Failure, type FetchPlan } from '@ckpt/core'
import { clockMs } from '../clock.ts'
import { type RankHandle, type RankListener, tellGone } from '../rank/handle.ts'
import {
  type MemoryAnswer,
  type OpenOptions,
  type Peer,
  PROGRESS_SENT,
  type RankAnswers,
  type RankEvent,
  type RankRequest,
  type RunOptions,
} from '../rank/messages.ts'
import type { RankInfo } from '../types.ts'
import type { LayoutColumns } from './layouts.ts'
import type {
  LeaderPost,
  NodeRequest,
  RanksHere,
  RemoteMeeting,
  RemoteRankRequest,
  RemoteTell,
} from './messages.ts'

/** What an update has of a daemon. */
export interface NodePart {
  /** See the request `lease`. */
  readonly lease: number
  /** Index of its first owner among all daemons' owners. */
  readonly firstOwner: number
}

/** What a rank of another daemon needs of the way there. */
export interface NodeCalls {
  readonly node: number
  /** What the update that runs has of the daemon. */
  readonly part: NodePart
  ask(request: NodeRequest): Promise<unknown>
  tell(rank: number, run: number, tell: RemoteTell): void
  /** Has the daemon hold a layout. Returns its key. */
  hold(layout: LayoutColumns): Promise<string>
}

interface RunningThere {
  readonly run: number
  readonly listener: RankListener
  readonly progress: Int32Array
  /** The update has no other rank, so that it waits for nobody. */
  isAlone: boolean
  /** It may send lists. */
  announced: boolean
  /** As its daemon has told it last: {@link PROGRESS_SENT}. */
  sent: number
  /** It is told to stop, and its daemon has not answered since: nobody knows what it has sent. */
  doubted: boolean
}

/** A rank whose Worker another daemon has; the leader's end. */
export class RemoteRank implements RankHandle {
  readonly rank: RankInfo
  readonly node: number
  readonly signal = 0
  readonly board = new SharedArrayBuffer(0)
  memory: MemoryAnswer = { freeBytes: 0, totalBytes: 0 }
  /** As its own daemon numbers it. */
  readonly #own: number
  readonly #calls: NodeCalls
  readonly #layoutOf: (table: object) => LayoutColumns
  readonly #settling = new Map<number, PromiseWithResolvers<void>>()
  #run: RunningThere | null = null
  #owed = 0
  #dead: Failure | null = null

  /** @param layoutOf the layout of all daemons that has this table */
  constructor(
    rank: RankInfo,
    own: number,
    calls: NodeCalls,
    layoutOf: (table: object) => LayoutColumns,
  ) {
    this.rank = rank
    this.node = calls.node
    this.#own = own
    this.#calls = calls
    this.#layoutOf = layoutOf
  }

  get dead(): Failure | null {
    return this.#dead
  }

  get busy(): boolean {
    return this.#run !== null
  }

  get owes(): boolean {
    return this.#owed > 0
  }

  async request<T extends RankRequest['type']>(
    request: Extract<RankRequest, { type: T }>,
  ): Promise<RankAnswers[T]> {
    if (this.#dead !== null) throw CkptError.from(this.#dead)
    const told = await this.#translate(request)
    this.#owed++
    try {
      const answer = await this.#calls.ask({ op: 'rank', rank: this.#own, request: told })
      return answer as RankAnswers[T]
    } catch (error) {
      throw this.#named(CkptError.wrap(error).failure)
    } finally {
      this.#owed--
    }
  }

  /** Its daemon tells of its own number. */
  #named(failure: Failure): CkptError {
    return CkptError.from({ ...failure, rank: this.rank.rank })
  }

  async #translate(request: RankRequest): Promise<RemoteRankRequest> {
    switch (request.type) {
      case 'memory':
      case 'communicator_drop':
      case 'communicator_id':
      case 'engine_map':
        return request
      case 'plan': {
        const { type, key, input } = request
        if (input === null) return { type, key, input }
        const { table, sources: _, rankNodes, ...rest } = input
        const layout = await this.#calls.hold(this.#layoutOf(table))
        // ranks that are not in the update have none
        const nodes = Array.from(rankNodes ?? [], (node) => node ?? -1)
        return { type, key, input: { ...rest, rankNodes: nodes, layout } }
      }
      case 'layout': {
        const { type, key, input } = request
        const layout = input === null ? null : await this.#calls.hold(this.#layoutOf(input.table))
        return { type, key, layout }
      }
      case 'open': {
        const { collective, ...options } = request.options
        if (this.#run !== null) this.#run.isAlone = options.ranks.length === 1
        const meeting = this.#meetingOf(collective, options.ranks)
        return { type: 'open', meeting, ...this.#there(options) }
      }
      case 'open_direct': {
        const { peers, ...options } = request.options
        const here = this.#hereOf(peers, options.ranks)
        return { type: 'open_direct', here, ...this.#there(options) }
      }
      default:
        throw new Error(`a rank of another daemon is not asked for '${request.type}'`)
    }
  }

  #meetingOf(
    collective: OpenOptions['collective'],
    ranks: readonly number[],
  ): RemoteMeeting | null {
    if (collective === null) return null
    if (collective.type !== 'communicator') throw new Error('ranks of several daemons copy nothing')
    const { id, sharers, peers } = collective
    return { id, sharers, here: this.#hereOf(peers, ranks) }
  }

  #hereOf(peers: readonly (Peer | null)[], ranks: readonly number[]): RanksHere {
    // the ranks of a daemon follow each other, here and there
    const first = this.rank.rank - this.#own
    return peers.map((peer, at) => (peer === null ? null : (ranks[at] as number) - first))
  }

  /** What is its own daemon's stays out. */
  #there<T extends RunOptions>(options: T) {
    const { buffers, readings: _readings, progress: _progress, deadlineMs, ...sent } = options
    // an engine of several hosts is called from one of them
    const engineAt = sent.engineAt?.node === this.node ? sent.engineAt : null
    const rest = { ...sent, engineAt }
    const place = { ...this.#calls.part, owners: buffers.length, leftMs: deadlineMs - clockMs() }
    return { options: rest, place }
  }

  async readMemory(): Promise<MemoryAnswer> {
    this.memory = await this.request({ type: 'memory' })
    return this.memory
  }

  listen(run: number, _ring: number, listener: RankListener, progress: SharedArrayBuffer): void {
    const nothing = { isAlone: false, announced: false, sent: 0, doubted: false }
    this.#run = { run, listener, progress: new Int32Array(progress), ...nothing }
  }

  unlisten(): void {
    this.#run = null
  }

  begin(run: number): void {
    if (this.#run?.run === run) this.#run.announced ||= this.#run.isAlone
    this.#tell(run, { type: 'begin' })
  }

  announce(run: number): void {
    if (this.#run?.run === run) this.#run.announced = true
    this.#tell(run, { type: 'announce' })
  }

  copy(run: number, fetch: FetchPlan | null, shares: boolean): void {
    this.#tell(run, { type: 'copy', fetch, shares })
  }

  leave(run: number, reason: string, leaveMs: number): void {
    this.#tell(run, { type: 'leave', reason, leaveMs })
  }

  release(run: number): void {
    this.#tell(run, { type: 'release' })
  }

  http(run: number, result: { ok: boolean; status: number; message: string }): void {
    const { ok, status, message } = result
    this.#tell(run, { type: 'http', ok, status, message })
  }

  raiseAbort(): void {
    const current = this.#run
    if (current === null) return
    this.#tell(current.run, { type: 'raise_abort' })
    if (current.announced && !current.doubted) void this.#doubt(current)
  }

  /** A daemon that is silent is lost only seconds later, and an update may have ended by then. */
  async #doubt(current: RunningThere): Promise<void> {
    current.doubted = true
    this.#noteSent(current)
    try {
      // what it has posted comes before the answer, and it sends nothing more
      await this.#calls.ask({ op: 'said' })
    } catch {
      return
    }
    current.doubted = false
    this.#noteSent(current)
  }

  #noteSent({ progress, sent, doubted }: RunningThere): void {
    Atomics.store(progress, PROGRESS_SENT, doubted ? Math.max(1, sent) : sent)
  }

  abort(run: number, failure: Failure, leaveMs: number): void {
    this.#tell(run, { type: 'abort', failure, leaveMs })
  }

  /** Of a daemon that is gone at once: what its ranks still read of other hosts goes to engines that are torn. */
  settled(run: number): Promise<void> {
    if (this.#dead !== null) return Promise.resolve()
    const waiting = this.#settling.get(run) ?? Promise.withResolvers<void>()
    this.#settling.set(run, waiting)
    return waiting.promise
  }

  #tell(run: number, tell: RemoteTell): void {
    if (this.#dead === null) this.#calls.tell(this.#own, run, tell)
  }

  /** What its daemon says of it. */
  take(post: LeaderPost): void {
    if (post.op === 'settled') {
      this.#settling.get(post.run)?.resolve()
      this.#settling.delete(post.run)
      return
    }
    const current = this.#run
    if (current?.run !== post.run) return
    // what it has sent is known before it is told that it has failed
    for (const [i, value] of post.progress.entries()) Atomics.store(current.progress, i, value)
    current.sent = Atomics.load(current.progress, PROGRESS_SENT)
    const isClosed = post.op === 'event' && post.event.type === 'closed'
    if (isClosed) current.doubted = false
    this.#noteSent(current)
    if (post.op === 'progress') return
    if (isClosed) this.#run = null
    current.listener(this.#translateEvent(post.event, clockMs() - post.nowMs), this.rank)
  }

  #translateEvent(event: RankEvent, aheadMs: number): RankEvent {
    if (event.type === 'failed') {
      return { ...event, failure: { ...event.failure, rank: this.rank.rank } }
    }
    if (event.type !== 'closed') return event
    const { h2d, broadcast, reload } = event.stages
    const moved = (spans: Float64Array) => spans.map((ms) => ms + aheadMs)
    const stages = { h2d: moved(h2d), broadcast: moved(broadcast), reload: moved(reload) }
    return { ...event, stages }
  }

  /** Its daemon, or the way there, is gone. */
  lose(failure: Failure): void {
    if (this.#dead !== null) return
    this.#dead = { ...failure, rank: this.rank.rank }
    for (const { resolve } of this.#settling.values()) resolve()
    this.#settling.clear()
    const current = this.#run
    this.#run = null
    if (current === null) return
    // what it has sent since it was heard of last nobody knows
    if (current.announced && Atomics.load(current.progress, PROGRESS_SENT) === 0) {
      Atomics.store(current.progress, PROGRESS_SENT, 1)
    }
    tellGone(current.listener, this.rank, this.#dead, { quarantinedBytes: 0, settled: true })
  }
}
