import type { Dialect, Failure, FetchPlan, SourceRanges, TimelineRow } from '@ckpt/core'
import { CkptError, fetchedBytes, planFetches } from '@ckpt/core'
import { gapsBetween } from '../rank/intervals.ts'
import type { RankHandle } from '../rank/handle.ts'
import {
  type CollectiveOptions,
  type DirectOpenOptions,
  type OpenAnswer,
  type OpenOptions,
  type Peer,
  PROGRESS_ACKED,
  PROGRESS_BYTES,
  PROGRESS_LEFT,
  PROGRESS_SENT,
  type RankEvent,
  type RankRequest,
  type RunOptions,
  type StageIntervals,
} from '../rank/messages.ts'
import type { RankInfo } from '../types.ts'
import { type Communicators, sharersOf } from './communicators.ts'
import type { PlacedBytes } from './direct-costs.ts'

const GROUP_MS = 1000
const TELL_MS = 50
const STAGES = ['h2d', 'broadcast', 'reload'] as const

/** What one rank needs to open; the rest of {@link OpenOptions} is the team's. */
export type RankOpening = Pick<OpenOptions, 'address' | 'http' | 'engine' | 'engineAt' | 'dialect'>
export type TeamOpening = Pick<
  OpenOptions,
  'planKey' | 'buffers' | 'remotes' | 'readings' | 'openMs' | 'deadlineMs'
> & {
  readonly ringBytes: number
}

/** What one rank needs to open a direct update. */
export type DirectRankOpening = Pick<DirectOpenOptions, 'address' | 'engine' | 'engineAt'>
export type DirectTeamOpening = Pick<
  DirectOpenOptions,
  'layoutKey' | 'prepares' | 'buffers' | 'readings' | 'openMs' | 'deadlineMs'
> & {
  /** For the ranks of a node. */
  memoryAt(node: number): Pick<DirectOpenOptions, 'away' | 'remotes'>
}

/** `connected`: whether a worker of the rank's engine has ever connected. */
export type FailureListener = (failure: Failure, rank: RankInfo, connected: boolean) => void

interface Member {
  readonly link: RankHandle
  readonly progress: Int32Array
  /** Resolves when no copy of it reads the checkpoint any more. */
  readonly settled: PromiseWithResolvers<void>
  isSettled: boolean
  readonly left: PromiseWithResolvers<void>
  opened: boolean
  looked: boolean
  begun: boolean
  transferred: boolean
  finished: boolean
  closed: boolean
  dialect: Dialect | null
  /** Of a direct update. */
  groups: number
  placedBytes: number
  shareableBytes: number
  needs: SourceRanges
  memory: OpenAnswer | null
  bytesPeak: number | null
  bytesAfter: number | null
  stages: StageIntervals | null
  turnaroundsMs: Float64Array
  readBy: readonly string[]
  takenBytes: number
}

type OpenRequest = Extract<RankRequest, { type: 'open' | 'open_direct' }>
type Step = 'opened' | 'looked' | 'begun' | 'transferred' | 'finished' | 'closed'

/** The ranks of one running update. */
export class RankTeam {
  readonly #run: number
  readonly #members: readonly Member[]
  readonly #onFailure: FailureListener
  readonly #steps = {
    opened: Promise.withResolvers<void>(),
    looked: Promise.withResolvers<void>(),
    begun: Promise.withResolvers<void>(),
    transferred: Promise.withResolvers<void>(),
    finished: Promise.withResolvers<void>(),
    closed: Promise.withResolvers<void>(),
  }
  readonly #notDirect = Promise.withResolvers<string>()
  #refusalLasts = false
  #group = 0
  #communicators: Communicators | null = null
  #aborted: Failure | null = null
  #opening = false
  #announced = false
  #released = false
  /** Of a direct update: what each node reads of others' memory. */
  #fetches: ReadonlyMap<number, FetchPlan | null> = new Map()
  /** Of each node that reads: bytes by the node that has them. */
  #fetched: ReadonlyMap<number, ReadonlyMap<number, number>> = new Map()

  constructor(run: number, links: readonly RankHandle[], onFailure: FailureListener) {
    this.#run = run
    this.#onFailure = onFailure
    this.#members = links.map((link) => ({
      link,
      progress: new Int32Array(new SharedArrayBuffer(PROGRESS_BYTES)),
      settled: Promise.withResolvers<void>(),
      isSettled: false,
      left: Promise.withResolvers<void>(),
      opened: false,
      looked: false,
      begun: false,
      transferred: false,
      finished: false,
      closed: false,
      dialect: null,
      groups: 0,
      placedBytes: 0,
      shareableBytes: 0,
      needs: new Float64Array(0),
      memory: null,
      bytesPeak: null,
      bytesAfter: null,
      stages: null,
      turnaroundsMs: new Float64Array(0),
      readBy: [],
      takenBytes: 0,
    }))
  }

  /**
   * Rings and sockets of every rank, and what they meet by; throws the first refusal. The rest of the team must then be aborted.
   *
   * @param communicators null: the ranks copy from each other's rings
   */
  async open(
    { ringBytes, ...team }: TeamOpening,
    ofRank: (rank: number) => RankOpening,
    communicators: Communicators | null = null,
  ): Promise<void> {
    const ranks = this.links.map(({ rank }) => rank.rank)
    this.#opening = true
    const collectiveOf = ranks.length > 1 ? await this.#meets(communicators) : () => null
    await this.#openEach(ringBytes, (base, rank) => {
      const collective = collectiveOf(rank)
      const member = ranks.indexOf(rank)
      const options = { ...base, ...team, ...ofRank(rank), ranks, member, collective }
      return { type: 'open', options }
    })
  }

  async #meets(communicators: Communicators | null): Promise<(rank: number) => CollectiveOptions> {
    try {
      return await this.#meet(communicators)
    } catch (error) {
      this.#noneOpens()
      throw error
    }
  }

  async #meet(communicators: Communicators | null): Promise<(rank: number) => CollectiveOptions> {
    const { links } = this
    if (communicators !== null) {
      this.#communicators = communicators
      const id = await communicators.take(links)
      const ranks = links.map(({ rank }) => rank)
      const uuidOf = new Map(ranks.map(({ rank, uuid }) => [rank, uuid]))
      const nodeOf = new Map(links.map(({ rank: { rank }, node }) => [rank, node]))
      return (rank) => {
        const sharers = sharersOf(ranks, uuidOf.get(rank) as string)
        const peers = this.#peersAt(nodeOf.get(rank) as number)
        return { type: 'communicator', id, sharers, peers }
      }
    }
    const request = { type: 'group_create', members: links.length } as const
    const { group } = await this.#first.link.request(request)
    this.#group = group
    return () => ({ type: 'copies', group })
  }

  /** For a rank of this daemon. */
  #peersAt(node: number): (Peer | null)[] {
    return this.#members.map(({ link, progress }) => {
      const { signal, board } = link
      const buffer = progress.buffer as SharedArrayBuffer
      return link.node === node ? { progress: buffer, signal, board } : null
    })
  }

  /** Sockets of every rank; throws as {@link RankTeam.open}. */
  async openDirect(
    { memoryAt, ...team }: DirectTeamOpening,
    ofRank: (rank: number) => DirectRankOpening,
  ): Promise<void> {
    this.#opening = true
    const ranks = this.links.map(({ rank }) => rank.rank)
    const nodes = this.links.map(({ node }) => node)
    await this.#openEach(0, (base, rank) => {
      const member = ranks.indexOf(rank)
      const node = nodes[member] as number
      const group = { ranks, member, peers: this.#peersAt(node), ...memoryAt(node) }
      const options = { ...base, ...team, ...group, ...ofRank(rank), http: true }
      return { type: 'open_direct', options }
    })
  }

  get links(): RankHandle[] {
    return this.#members.map(({ link }) => link)
  }

  get #first(): Member {
    const [first] = this.#members
    if (first === undefined) throw new Error('an update has at least one rank')
    return first
  }

  async #openEach(
    ringBytes: number,
    requestOf: (base: Pick<RunOptions, 'run' | 'progress'>, rank: number) => OpenRequest,
  ): Promise<void> {
    if (this.#aborted !== null) {
      this.#noneOpens()
      throw CkptError.from(this.#aborted)
    }
    const refusals: CkptError[] = []
    // the others may wait for one that has refused; a rank takes its signal anew when it begins to open
    const telling = setInterval(() => {
      if (refusals.length > 0) for (const { link } of this.#members) link.raiseAbort()
    }, TELL_MS)
    await Promise.all(
      this.#members.map(async (member) => {
        const { link, progress } = member
        const base = { run: this.#run, progress: progress.buffer as SharedArrayBuffer }
        link.listen(this.#run, ringBytes, (event) => this.#take(member, event), base.progress)
        try {
          member.memory = await link.request(requestOf(base, link.rank.rank))
        } catch (error) {
          link.unlisten()
          if (!member.closed) this.#settle(member)
          this.#reach(member, 'closed')
          refusals.push(CkptError.wrap(error))
        }
      }),
    )
    clearInterval(telling)
    const [refusal] = refusals
    if (refusal) throw refusal
  }

  /** Nothing is to be waited for. */
  #noneOpens(): void {
    for (const member of this.#members) {
      this.#settle(member)
      this.#reach(member, 'closed')
    }
  }

  begin(): void {
    // one that is alone sends its first list as soon as it has opened
    this.#announced ||= this.#members.length === 1
    for (const { link } of this.#members) link.begin(this.#run)
  }

  /** Every rank has opened. One that is alone knows. */
  announce(): void {
    this.#announced = true
    if (this.#members.length === 1) return
    for (const { link } of this.#members) link.announce(this.#run)
  }

  /** Every engine worker has said where its weights lie: they are to be held still. */
  hold(): void {
    for (const { link } of this.#members) link.announce(this.#run)
  }

  /** Whether a rank will refuse later updates too, as long as hosts and networks are the same. */
  get refusalLasts(): boolean {
    return this.#refusalLasts
  }

  /**
   * Plans what is read of other nodes' memory in a direct update, all of whose ranks have looked: once for all ranks of a node.
   * Before {@link RankTeam.copy}. Returns what is copied and read.
   */
  planFetches(ownerNodes: readonly number[]): PlacedBytes {
    const nodes = [...new Set(this.links.map(({ node }) => node))]
    this.#fetches = new Map(
      nodes.map((node) => {
        const members = this.#members.filter(({ link }) => link.node === node)
        const needs = members.map((member) => member.needs)
        return [node, planFetches(node, ownerNodes, needs)]
      }),
    )
    this.#fetched = new Map(
      [...this.#fetches].map(([node, plan]) => {
        return [node, plan === null ? new Map() : fetchedBytes(plan, ownerNodes)]
      }),
    )
    return {
      placed: this.#members.map(({ placedBytes }) => placedBytes),
      shareable: this.#members.map(({ shareableBytes }) => shareableBytes),
      fetched: this.#fetched,
    }
  }

  /** Every engine worker holds still. `shares`: of a node's ranks one brings what several need, see {@link RankMessage}. */
  copy(shares: (node: number) => boolean): void {
    const sharing = new Map([...this.#fetches.keys()].map((node) => [node, shares(node)]))
    for (const member of this.#members) {
      const { node } = member.link
      const [fetch, shared] = [this.#fetches.get(node), sharing.get(node)]
      if (fetch === undefined || shared === undefined)
        throw new Error('what is read is not planned')
      member.groups += fetch === null ? 0 : fetch.chunks.length - 1
      member.link.copy(this.#run, fetch, shared)
    }
  }

  /** Of a direct update: bytes that all nodes read of other nodes' memory. */
  get fetchedBytes(): number {
    const all = [...this.#fetched.values()].flatMap((of) => [...of.values()])
    return all.reduce((sum, bytes) => sum + bytes, 0)
  }

  /** Of the same: bytes that ranks took out of each other's engines. */
  get takenBytes(): number {
    return this.#members.reduce((sum, { takenBytes }) => sum + takenBytes, 0)
  }

  /** It will not be done directly; nothing was changed. */
  leave(reason: string, leaveMs: number): void {
    for (const { link } of this.#members) link.leave(this.#run, reason, leaveMs)
  }

  release(): void {
    this.#released = true
    for (const { link } of this.#members) link.release(this.#run)
  }

  /** The engine of these ranks has answered its update request. */
  http(ranks: readonly RankInfo[], result: { ok: boolean; status: number; message: string }): void {
    for (const { link } of this.#of(ranks)) link.http(this.#run, result)
  }

  /** Every bit is set before any rank can end the group: a rank sees the bit before it sees what the end spoils. */
  abort(failure: Failure, leaveMs: number): void {
    this.#aborted ??= failure
    this.#communicators?.drop()
    if (!this.#opening) return
    for (const { link, closed } of this.#members) if (!closed) link.raiseAbort()
    for (const { link, closed } of this.#members) {
      if (!closed) link.abort(this.#run, failure, leaveMs)
    }
  }

  reached(step: Step): Promise<void> {
    return this.#steps[step].promise
  }

  /** As {@link RankTeam.reached}, or why an engine worker cannot be updated directly. */
  reachedDirectly(step: 'looked' | 'begun'): Promise<string | null> {
    return Promise.race([this.reached(step).then(() => null), this.#notDirect.promise])
  }

  /** Resolves when no rank uses anything of this update any more. */
  async left(): Promise<void> {
    if (!this.#opening) return
    await this.#steps.closed.promise
    if (this.#aborted === null) this.#communicators?.leave()
    if (this.#group === 0 || this.#first.link.dead !== null) return
    const destroyed = this.#first.link.request({ type: 'group_destroy', group: this.#group })
    this.#group = 0
    await Promise.race([destroyed.catch(() => {}), Bun.sleep(GROUP_MS)])
  }

  /** Resolves when these ranks use nothing of this update any more. */
  async leftBy(ranks: readonly RankInfo[]): Promise<void> {
    if (this.#opening) await Promise.all(this.#of(ranks).map(({ left }) => left.promise))
  }

  /** What must be waited for before the checkpoint may go, a rank that has not closed included; null: nothing. */
  get settling(): Promise<unknown> | null {
    if (!this.#opening || this.#members.every((member) => member.isSettled)) return null
    return Promise.all(this.#members.map((member) => member.settled.promise))
  }

  #settle(member: Member): void {
    member.isSettled = true
    member.settled.resolve()
  }

  #take(member: Member, event: RankEvent): void {
    switch (event.type) {
      case 'failed':
        member.dialect = event.dialect ?? member.dialect
        return this.#onFailure(event.failure, member.link.rank, event.connected)
      case 'looked':
        member.groups = event.groups
        member.placedBytes = event.bytes
        member.shareableBytes = event.shareableBytes
        member.needs = event.needs
        // its worker is there, as one that has mapped a ring
        member.opened = true
        return this.#reach(member, 'looked')
      case 'not_direct':
        this.#refusalLasts ||= event.lasts ?? false
        return this.#notDirect.resolve(event.reason)
      case 'transferred':
        member.readBy = event.readBy
        member.takenBytes = event.takenBytes
        return this.#reach(member, 'transferred')
      case 'finished':
        member.dialect = event.dialect
        return this.#reach(member, 'finished')
      case 'closed':
        if (event.settled) this.#settle(member)
        else void member.link.settled(this.#run).then(() => this.#settle(member))
        member.stages = event.stages
        member.turnaroundsMs = event.turnaroundsMs
        member.bytesPeak = event.bytesPeak
        member.bytesAfter = event.bytesAfter
        return this.#reach(member, 'closed')
      default:
        return this.#reach(member, event.type)
    }
  }

  #reach(member: Member, step: Step): void {
    member[step] = true
    if (step === 'closed') member.left.resolve()
    if (this.#members.every((one) => one[step])) this.#steps[step].resolve()
  }

  #of(ranks: readonly RankInfo[]): Member[] {
    return this.#members.filter(({ link }) => ranks.some((one) => one.rank === link.rank.rank))
  }

  anyOpened(ranks: readonly RankInfo[]): boolean {
    return this.#of(ranks).some((member) => member.opened)
  }

  /** Whether every rank had everything, and the engines were told that there is no more. */
  get released(): boolean {
    return this.#released
  }

  /** Whether an engine at these ranks was sent at least one list; of a rank whose daemon is gone, whether it could have been. */
  anySent(ranks: readonly RankInfo[]): boolean {
    return this.#of(ranks).some(({ link, progress }) => {
      const isGone = this.#announced && link.node !== 0 && link.dead !== null
      return isGone || Atomics.load(progress, PROGRESS_SENT) > 0
    })
  }

  allFinished(ranks: readonly RankInfo[]): boolean {
    return this.#of(ranks).every((member) => member.finished)
  }

  dialectOf(ranks: readonly RankInfo[]): Dialect | null {
    return this.#of(ranks).find((member) => member.dialect !== null)?.dialect ?? null
  }

  /** Buckets that every rank has. */
  get bucketsDone(): number {
    const done = this.#members.map(({ progress }) => Atomics.load(progress, PROGRESS_ACKED))
    return Math.min(...done)
  }

  /** Of a direct update: groups of copies, and chunks that are read, of the rank that has most, bytes of all ranks, and the part of them that is there. */
  get placed(): { readonly groups: number; readonly bytes: number; readonly part: number } {
    return {
      groups: Math.max(...this.#members.map(({ groups }) => groups)),
      bytes: this.#members.reduce((sum, { placedBytes }) => sum + placedBytes, 0),
      part: Math.min(...this.#members.map((one) => (one.groups === 0 ? 0 : partOf(one)))),
    }
  }

  /**
   * The rank that has taken the fewest buckets, or the least part of its copies, or has not opened its ring yet, or whose worker has
   * not left: what an update that makes no progress waits for.
   */
  get slowestRank(): number | undefined {
    const taken = (member: Member) => {
      const { opened, looked, begun, transferred, progress } = member
      if (!opened) return -2
      // of a direct update: its worker does not hold still yet
      if (looked && !begun) return -1
      return partOf(member) + Number(transferred) + Atomics.load(progress, PROGRESS_LEFT)
    }
    const waiting = this.#members.filter((member) => !member.finished)
    return waiting.sort((a, b) => taken(a) - taken(b))[0]?.link.rank.rank
  }

  /** When each stage of each rank had work and when none of them had, of the ranks that have closed. */
  get rows(): TimelineRow[] {
    return this.#members.flatMap(({ link, stages }) => {
      if (stages === null) return []
      const group = `rank ${link.rank.rank}`
      const rows = STAGES.map((name) => ({ group, name, spans: stages[name] }))
      return [...rows, { group, name: 'wait', spans: gapsBetween(rows.map(({ spans }) => spans)) }]
    })
  }

  get stages(): StageIntervals[] {
    return this.#members.flatMap(({ stages }) => stages ?? [])
  }

  /** How other daemons' memory was read; empty: it was not. */
  get readBy(): string[] {
    return [...new Set(this.#members.flatMap(({ readBy }) => readBy))]
  }

  stagesOf(ranks: readonly RankInfo[]): StageIntervals[] {
    return this.#of(ranks).flatMap(({ stages }) => stages ?? [])
  }

  /** Of every list of every rank, in seconds; null: none was sent. */
  get turnaround(): { p50_s: number; p99_s: number } | null {
    const ms = this.#members
      .flatMap(({ turnaroundsMs }) => [...turnaroundsMs])
      .sort((a, b) => a - b)
    const at = (part: number) => ms[Math.floor(part * (ms.length - 1))] as number
    return ms.length === 0 ? null : { p50_s: at(0.5) / 1000, p99_s: at(0.99) / 1000 }
  }

  /** Of the rank whose device was used most. */
  get deviceBytes(): { before: number; peak: number; after: number } {
    let most = { before: 0, peak: 0, after: 0 }
    for (const { memory, bytesPeak, bytesAfter } of this.#members) {
      if (memory === null) continue
      const peak = Math.max(memory.bytesAfter, bytesPeak ?? 0)
      if (peak < most.peak) continue
      most = { before: memory.bytesBefore, peak, after: bytesAfter ?? peak }
    }
    return most
  }
}

/** Buckets that it has; of a direct update the part of its copies, of which each has its own number. */
function partOf({ groups, progress }: Member): number {
  const acked = Atomics.load(progress, PROGRESS_ACKED)
  return groups === 0 ? acked : acked / groups
}
