import {
  CkptError,
  type EngineReport,
  type Failure,
  type Phase,
  type TimelineRow,
  type UpdateReport,
} from '@ckpt/core'
import { clockMs } from '../clock.ts'
import { abortOf } from '../../engines/client.ts'
import type { RankHandle } from '../rank/handle.ts'
import { requireVersion } from '../registry/lease.ts'
import type { HeldVersion, RankInfo, VersionLease } from '../types.ts'
import { EngineContact } from './contact.ts'
import { UpdateConversations } from './conversations.ts'
import { directObstacle, type NotDirectly } from './direct-obstacle.ts'
import { prepareDirect } from './direct-preparation.ts'
import { hostsOf, type MemoryAt, memoryReadable, networkOf, remoteMemory } from './network.ts'
import { keepLayout, type PlannedUpdate } from './plan.ts'
import { leave } from './leave.ts'
import { RankFailures, type UpdateState } from './rank-failures.ts'
import type { UpdateRecord } from './record.ts'
import { makeReport, PhaseClock, type Transferred } from './report.ts'
import type { RunContext } from './run-context.ts'
import type { UpdateSpec } from './spec.ts'
import { type DirectTeamOpening, RankTeam } from './team.ts'
import { UpdateTimes } from './times.ts'
import { toldBy } from './told.ts'
import { VersionReading } from './version-reading.ts'

const PROGRESS_MS = 100

/** One update from its turn to its end. */
export class UpdateRun {
  readonly #context: RunContext
  readonly #spec: UpdateSpec
  readonly #record: UpdateRecord
  readonly #run: number
  readonly #times: UpdateTimes
  readonly #clock: PhaseClock
  readonly #controller = new AbortController()
  readonly #failures: RankFailures
  #contacts: readonly EngineContact[] = []
  /** Those that have done what follows an update. */
  readonly #settled = new Set<EngineContact>()
  /** Of its ranks, when it has come to them. */
  #links: readonly RankHandle[] = []
  #team: RankTeam | null = null
  #lease: VersionLease | null = null
  #planned: PlannedUpdate | null = null
  #transferred: (() => Transferred) | null = null
  /** Looked at, and paused where asked for. */
  #enginesPrepared = false
  /** Where their weights lie. */
  #askedDirectly = false
  /** It waits for copies of an earlier update. */
  #waitsForCopies = false
  #conversations: UpdateConversations | null = null
  #reading: VersionReading
  #failure: Failure | null = null
  #ended = false

  /** @param deadlineMs of `clockMs`; the wait for the turn has counted already */
  constructor(
    context: RunContext,
    spec: UpdateSpec,
    record: UpdateRecord,
    run: number,
    times: { readonly startMs: number; readonly deadlineMs: number },
  ) {
    this.#context = context
    this.#spec = spec
    this.#record = record
    this.#run = run
    this.#times = new UpdateTimes(times.deadlineMs)
    this.#clock = new PhaseClock(times.startMs)
    this.#reading = new VersionReading(context.library, null)
    const fail = (failure: Failure) => this.fail(failure)
    this.#failures = new RankFailures(spec, this.#times, () => this.#state, fail)
  }

  get #state(): UpdateState {
    return {
      phase: this.#clock.phase,
      links: this.#links,
      team: this.#team,
      contacts: this.#contacts,
      settled: this.#settled,
      version: this.#lease?.version ?? null,
      reading: this.#reading.words,
      waitsForCopies: this.#waitsForCopies,
    }
  }

  /** The engines as they stand, for the state of an update that failed. */
  get engineReports(): EngineReport[] {
    const team = this.#team
    const taking = this.#contacts.map((contact) =>
      contact.report(this.#failure, team?.allFinished(contact.ranks) ?? false),
    )
    const { book, engineHost } = this.#context
    const leftOut = this.#spec.leftOut.map(({ spec, failure }) => {
      const contact = new EngineContact(spec, [], book.record(spec), engineHost(spec.node))
      return contact.report(failure, false)
    })
    return [...taking, ...leftOut]
  }

  /** When what went on: the phases, the reading, the stages of each rank. */
  get timeline(): TimelineRow[] {
    const read = { group: 'update', name: 'read', spans: this.#reading.span }
    return [this.#clock.row, read, ...(this.#team?.rows ?? [])]
  }

  /** Runs to the end. @throws CkptError why it failed, after every engine has left or was given up */
  async execute(): Promise<UpdateReport> {
    const timer = setTimeout(() => this.fail(this.#failures.late), this.#times.failMs)
    const progress = setInterval(() => this.#publishProgress(), PROGRESS_MS)
    let succeeded = false
    try {
      const report = await this.#steps()
      succeeded = true
      return report
    } catch (error) {
      this.fail(CkptError.wrap(error).failure)
      await this.#leave()
      throw CkptError.from(this.#failure as Failure)
    } finally {
      this.#ended = true
      clearTimeout(timer)
      clearInterval(progress)
      this.#releaseLease(succeeded)
    }
  }

  /** A copy that could not be stopped still reads the checkpoint. */
  #releaseLease(succeeded: boolean): void {
    const settling = this.#team?.settling ?? null
    if (settling === null) this.#lease?.release(succeeded)
    else void settling.then(() => this.#lease?.release(succeeded))
  }

  /** Ends the update: the first failure counts. */
  fail(failure: Failure): void {
    if (this.#failure !== null || this.#ended) return
    const phase = this.#clock.phase
    this.#failure = phase === null ? failure : { phase, ...failure }
    this.#team?.abort(this.#failure, this.#times.leaveMs)
    this.#controller.abort(CkptError.from(this.#failure))
  }

  /** Some ranks are gone, though nothing may have been asked of them just now. */
  lose(ranks: readonly number[], failure: Failure): void {
    const { phase } = this.#clock
    // every rank has done its part
    if (phase === 'post' || phase === 'resume') return
    // what is read over the network has been read when the conversations end
    const owners = phase === 'release' ? [] : (this.#lease?.version.ownerRanks.flat() ?? [])
    const rank = ranks.find((one) => this.#spec.ranks.includes(one) || owners.includes(one))
    if (rank !== undefined) this.fail({ ...failure, rank })
  }

  #enter(phase: Phase): void {
    this.#clock.enter(phase)
    this.#record.phase(phase)
  }

  /** The value, unless the update fails before. */
  #race<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, abortOf(this.#controller.signal)])
  }

  async #steps(): Promise<UpdateReport> {
    const version = await this.#gather()
    const contacts = this.#makeContacts()
    // as long as the plan takes; while files are read an engine need not be there yet
    const ready = this.#reading.goesOn ? Promise.resolve(false) : this.#areReady(contacts)
    const prepared = () => this.#prepareEngines(contacts, ready)
    const notDirect = await this.#placeDirectly(version, contacts, prepared)
    if (notDirect !== null) await this.#openRing(version, contacts, prepared, notDirect.told)
    await this.#transfer(version)
    await this.#settle()
    if (notDirect !== null && !this.#askedDirectly) await this.#prepareDirect(version)
    await this.#resume()
    await this.#context.book.save()
    this.#clock.enter(null)
    const report = makeReport({
      spec: this.#spec,
      version,
      transferred: (this.#transferred as () => Transferred)(),
      team: this.#team as RankTeam,
      clock: this.#clock,
      readings: this.#reading.readings,
      readSpan: this.#reading.span,
      engines: this.engineReports,
    })
    if (this.#planned !== null) this.#learn(this.#planned, report)
    return report
  }

  async #prepareEngines(
    contacts: readonly EngineContact[],
    ready: Promise<boolean>,
  ): Promise<void> {
    if (this.#enginesPrepared) return
    this.#enter('open')
    await this.#race(this.#quiet())
    const openUntilMs = clockMs() + this.#spec.openMs
    if (!(await this.#race(ready))) await this.#race(this.#lookAt(contacts, openUntilMs))
    await this.#pauseEngines()
    this.#enginesPrepared = true
  }

  /** What an update that was aborted still copies into an engine's memory would come after what this one brings. */
  async #quiet(): Promise<void> {
    this.#waitsForCopies = true
    await this.#context.pool.quiet(this.#spec.ranks)
    this.#waitsForCopies = false
  }

  async #openRing(
    version: HeldVersion,
    contacts: readonly EngineContact[],
    prepared: () => Promise<void>,
    notDirect: string | null,
  ): Promise<void> {
    await this.#plan(version, contacts.length, notDirect)
    await this.#headStart()
    this.#contacts = contacts
    await prepared()
    await this.#openRanks(version)
  }

  /**
   * Tries to copy straight into the engines' memory. Null: their weights are held still and the copies may begin. Otherwise
   * nothing was changed; `told` is why, where somebody has said so.
   */
  async #placeDirectly(
    version: HeldVersion,
    contacts: readonly EngineContact[],
    prepared: () => Promise<void>,
  ): Promise<NotDirectly | null> {
    const obstacle = directObstacle(this.#spec, contacts) ?? this.#costsMore(version)
    const refused = obstacle ?? (await this.#holdEngines(version, contacts, prepared))
    if (refused === null) return null
    if (this.#spec.mode !== 'direct') return refused
    const message = `the engines cannot be updated directly: ${refused.told}`
    const gone = contacts.find(({ result }) => result?.status === 0)
    if (gone === undefined) throw new CkptError('not_supported', message, { phase: 'plan' })
    const rank = gone.ranks[0]?.rank
    const whose = rank === undefined ? {} : { rank }
    throw new CkptError('engine_unreachable', message, { phase: 'open', ...whose })
  }

  async #holdEngines(
    version: HeldVersion,
    contacts: readonly EngineContact[],
    prepared: () => Promise<void>,
  ): Promise<NotDirectly | null> {
    const { signal } = this.#controller
    const same = await this.#race(Promise.all(contacts.map((one) => one.isAsBefore(signal))))
    if (same.includes(false)) return { told: 'the engine was started again' }
    this.#enter('plan')
    const links = await this.#useRanks()
    const [layoutKey, memoryAt] = await this.#race(
      Promise.all([keepLayout(version, links), this.#memoryAt(links)]),
    )
    // the engines need not be asked where their weights lie
    this.#askedDirectly = true
    if ('told' in memoryAt) return memoryAt
    await this.#headStart()
    this.#contacts = contacts
    const team = this.#makeTeam(links, this.#run)
    await this.#openDirectly(version, team, { layoutKey, memoryAt }, prepared)
    const refused = await this.#race(team.reachedDirectly('looked'))
    if (refused === null || team.refusalLasts) {
      const said = refused ?? team.planFetches(version.ownerNodes)
      this.#context.directCosts.note(version, this.#spec, said)
    }
    const told = refused ?? this.#costsMore(version)?.told ?? (await this.#race(this.#hold(team)))
    if (told === null) {
      this.#transferred = () => this.#directly(version, team)
      team.copy((node) => this.#context.directCosts.shares(node, this.#spec))
      this.#record.size(team.placed.groups, version.bytes)
      return null
    }
    team.leave(told, this.#times.leaveMs)
    await this.#race(team.left())
    for (const one of this.#contacts) {
      const held = team.anySent(one.ranks)
      await this.#race(one.giveUpDirect(this.#spec.id, held, signal))
    }
    return { told }
  }

  #costsMore(version: HeldVersion): { readonly told: string } | null {
    const told = this.#context.directCosts.against(version, this.#spec)
    return told === null ? null : { told }
  }

  /** How the ranks get at what other hosts have. A host without a network for that is no failure. */
  async #memoryAt(links: readonly RankHandle[]): Promise<MemoryAt | { readonly told: string }> {
    const { version } = this.#lease as VersionLease
    if (this.#reading.goesOn && this.#spec.mode === 'auto' && hostsOf(version, links) > 1) {
      return {
        told: 'other hosts read only what is wholly in memory, and files are still being read',
      }
    }
    try {
      return await memoryReadable(this.#lease as VersionLease, links)
    } catch (error) {
      const { code, message } = CkptError.wrap(error)
      if (code === 'not_supported') return { told: message }
      throw error
    }
  }

  #hold(team: RankTeam): Promise<string | null> {
    team.hold()
    return team.reachedDirectly('begun')
  }

  async #openDirectly(
    version: HeldVersion,
    team: RankTeam,
    from: Pick<DirectTeamOpening, 'layoutKey' | 'memoryAt'>,
    prepared: () => Promise<void>,
  ): Promise<void> {
    const { journal } = this.#context
    const { buffers, readings } = version
    const conversations = this.#converse()
    const { addresses } = conversations
    const times = { openMs: this.#spec.openMs, deadlineMs: this.#times.deadlineMs }
    const opened = [
      team.openDirect(
        { ...from, buffers, readings, prepares: false, ...times },
        conversations.direct,
      ),
      journal.conversations(conversations.journalled(version)),
      this.#checkFiles(),
    ]
    // an engine takes a millisecond to say that it is ready
    await this.#race(Promise.all([prepared(), ...opened.map((work) => inPhase('open', work))]))
    this.#enter('open')
    team.begin()
    for (const contact of this.#contacts) this.#post(contact, addresses, team, true)
  }

  #directly({ table, bytes }: HeldVersion, team: RankTeam): Transferred {
    const asked = this.#spec.mode === 'direct' ? 'asked for; ' : ''
    return {
      mode: 'direct',
      reason: `${asked}the engine has told where its weights lie`,
      tensors: table.names.length,
      bytes,
      buckets: team.placed.groups,
      ringBytes: 0,
      bucketBytes: 0,
      h2dBytes: team.placed.bytes - team.takenBytes,
    }
  }

  /** Not waited for. */
  #learn({ summary }: PlannedUpdate, { stages }: UpdateReport): void {
    const engines = this.#contacts.map(({ ranks, spec: { key } }) => {
      return { key, stages: this.#team?.stagesOf(ranks) ?? [] }
    })
    void this.#context.rates.learn(toldBy({ ranks: this.#ranks, summary, stages, engines }))
  }

  async #gather(): Promise<HeldVersion> {
    this.#enter('gather')
    const leased = this.#context.lease(this.#spec.checkpoint, this.#spec)
    // one that comes when the update has failed is not needed
    leased.then((lease) => this.#failure !== null && lease.release(false)).catch(() => {})
    this.#lease = await this.#race(leased)
    const { version, complete } = this.#lease
    requireVersion(version, this.#spec.version)
    this.#reading = new VersionReading(this.#context.library, version)
    complete.then(
      (seconds) => this.#reading.ended(seconds),
      // no rank can go on
      (error) => this.fail(CkptError.wrap(error).failure),
    )
    return version
  }

  async #plan(version: HeldVersion, engines: number, notDirect: string | null): Promise<void> {
    const { planner } = this.#context
    this.#enter('plan')
    const links = await this.#useRanks()
    const network = networkOf(version, links, this.#context.pool.links)
    const planned = await this.#race(planner.plan(version, this.#spec, links, network))
    this.#planned = planned
    this.#makeTeam(links, this.#run + 1)
    const { summary, reason } = planned
    this.#record.size(summary.bucketCount, summary.totalBytes)
    const { mode, tensorCount: tensors, totalBytes: bytes, ringBytes, bucketBytes } = summary
    const why = notDirect === null || engines === 0 ? reason : `${reason}; not direct: ${notDirect}`
    const sizes = { tensors, bytes, buckets: summary.bucketCount, ringBytes, bucketBytes }
    this.#transferred = () => ({ mode, reason: why, ...sizes, h2dBytes: bytes })
  }

  async #useRanks(): Promise<readonly RankHandle[]> {
    this.#links = await this.#race(this.#context.pool.use(this.#spec.ranks))
    return this.#links
  }

  #makeTeam(links: readonly RankHandle[], run: number): RankTeam {
    this.#team = new RankTeam(run, links, (...told) => this.#failures.take(...told))
    return this.#team
  }

  async #headStart(): Promise<void> {
    if (!this.#reading.goesOn) return
    this.#enter('register')
    await this.#race(this.#reading.headStart(() => this.#ended || this.#failure !== null))
  }

  get #ranks(): RankInfo[] {
    const ranks = this.#context.pool.links.map(({ rank }) => rank)
    return ranks.filter((one) => this.#spec.ranks.includes(one.rank))
  }

  #makeContacts(): EngineContact[] {
    const { book, engineHost } = this.#context
    return this.#spec.engines.map((spec) => {
      const ranks = spec.ranks.map((rank) => this.#ranks.find((one) => one.rank === rank))
      const host = engineHost(spec.node)
      return new EngineContact(spec, ranks as RankInfo[], book.record(spec), host)
    })
  }

  /** Looks once, and says nothing of what is wrong. */
  #areReady(contacts: readonly EngineContact[]): Promise<boolean> {
    return this.#lookAt(contacts, clockMs()).then(
      () => true,
      () => false,
    )
  }

  /** Until all of them can take an update. */
  async #lookAt(contacts: readonly EngineContact[], untilMs: number): Promise<void> {
    const waitMs = Math.max(0, Math.min(untilMs - clockMs(), this.#times.waitMs))
    await Promise.all(contacts.map((one) => one.ready(waitMs, this.#controller.signal)))
  }

  async #pauseEngines(): Promise<void> {
    const { pause, pauseMs } = this.#spec
    const { signal } = this.#controller
    if (pause === null || this.#contacts.length === 0) return
    this.#enter('pause')
    const limitMs = Math.min(pauseMs, this.#times.waitMs)
    const { id } = this.#spec
    const paused = this.#contacts.map((one) => one.pause(pause, limitMs, id, signal))
    await this.#race(Promise.all(paused))
  }

  async #openRanks(version: HeldVersion): Promise<void> {
    const { journal } = this.#context
    this.#enter('open')
    await this.#race(this.#checkFiles())
    const conversations = this.#converse()
    const { addresses } = conversations
    const team = this.#team as RankTeam
    const planned = this.#planned as PlannedUpdate
    const opening = {
      planKey: planned.key,
      ringBytes: planned.summary.ringBytes,
      buffers: version.buffers,
      remotes: await this.#race(remoteMemory(this.#lease as VersionLease, team.links)),
      readings: version.readings,
      openMs: this.#spec.openMs,
      deadlineMs: this.#times.deadlineMs,
    }
    const openingOf = (rank: number) => ({
      address: addresses.get(rank) ?? null,
      http: this.#contacts.length > 0,
      engine: conversations.engineKey(rank),
      engineAt: conversations.contact(rank)?.at ?? null,
      dialect: conversations.contact(rank)?.dialect ?? null,
    })
    await this.#race(team.open(opening, openingOf, this.#context.communicatorsOf(team.links)))
    await this.#race(journal.conversations(conversations.journalled(version)))
    team.begin()
    if (this.#contacts.length === 0) this.#record.map(conversations.publishedMap(this.#ranks))
    for (const contact of this.#contacts) this.#post(contact, addresses, team)
    await this.#race(team.reached('opened'))
    team.announce()
  }

  /** What lies in place must be what it was. */
  async #checkFiles(): Promise<void> {
    await this.#lease?.check?.()
  }

  #converse(): UpdateConversations {
    const { sockets } = this.#context
    this.#conversations = new UpdateConversations(this.#spec, this.#contacts, sockets)
    return this.#conversations
  }

  #post(
    contact: EngineContact,
    addresses: ReadonlyMap<number, string>,
    team: RankTeam,
    direct = false,
  ): void {
    const { closing } = this.#context
    const map = contact.map(addresses)
    const seconds = Math.max(0.001, Math.round(this.#times.leftMs) / 1000)
    void contact.post(map, this.#spec, seconds, closing, direct).then((result) => {
      team.http(contact.ranks, result)
    })
  }

  async #transfer(version: HeldVersion): Promise<void> {
    const team = this.#team as RankTeam
    this.#enter('transfer')
    await this.#race(team.reached('transferred'))
    await this.#race((this.#lease as VersionLease).complete)
    await this.#race(this.#checkFiles())
    this.#enter('release')
    team.release()
    await this.#race(team.reached('finished'))
    for (const contact of this.#contacts) {
      const taken = this.#spec.weightVersion ?? version.version
      contact.succeed(taken, team.dialectOf(contact.ranks))
    }
    this.#publishProgress()
  }

  async #settle(): Promise<void> {
    const { signal } = this.#controller
    const team = this.#team as RankTeam
    this.#enter('post')
    const settled = this.#contacts.map(async (one) => {
      await one.settle(signal)
      this.#settled.add(one)
    })
    // while the ranks give back their memory, or close that of the engine
    await this.#race(Promise.all([team.left(), ...settled]))
  }

  /** For the next update, before the engines go on. */
  async #prepareDirect(version: HeldVersion): Promise<void> {
    this.#enter('plan')
    // it ends itself: nothing of it may be left when the update has ended
    await prepareDirect({
      context: this.#context,
      spec: this.#spec,
      run: this.#run + 2,
      version,
      contacts: this.#makeContacts(),
      deadlineMs: this.#times.deadlineMs,
      signal: this.#controller.signal,
    })
    if (this.#failure !== null) throw CkptError.from(this.#failure)
  }

  async #resume(): Promise<void> {
    const { signal } = this.#controller
    // the caches of the old weights are gone: what a daemon leaves that is killed from here on is whole
    const journalled = this.#context.journal.conversations([])
    this.#enter('resume')
    const resumed = this.#contacts.map((one) => one.resume(signal))
    await this.#race(Promise.all([journalled, ...resumed]))
  }

  #publishProgress(): void {
    const team = this.#team
    if (team === null) return
    const { groups, part } = team.placed
    if (groups > 0) {
      const done = Math.floor(part * groups)
      const bytes = this.#lease?.version.bytes ?? 0
      if (done > 0) this.#record.progress(done, Math.floor(part * bytes))
      return
    }
    const buckets = team.bucketsDone
    if (buckets === 0) return
    this.#record.progress(buckets, this.#planned?.summary.bytesThrough[buckets - 1] ?? 0)
  }

  async #leave(): Promise<void> {
    const weightVersion = this.#spec.weightVersion ?? this.#lease?.version.version ?? null
    this.#failure = await leave({
      context: this.#context,
      updateId: this.#spec.id,
      weightVersion,
      failure: this.#failure as Failure,
      team: this.#team,
      contacts: this.#contacts,
      conversations: this.#conversations,
      times: this.#times,
    })
  }
}

/** What fails in it belongs to that phase, whatever else is going on. */
async function inPhase(phase: Phase, work: Promise<void>): Promise<void> {
  try {
    await work
  } catch (error) {
    throw CkptError.from({ phase, ...CkptError.wrap(error).failure })
  }
}
