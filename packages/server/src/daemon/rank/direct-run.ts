import {
  CkptError,
  type DirectAction,
  DirectConversation,
  type DirectEvent,
  type DirectPlan,
  type Failure,
  type FetchPlan,
  type LookAnswer,
  type NotDirect,
  SLOT_BYTES,
} from '@ckpt/core'
import { type Handle, SIGNAL_ABORT } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { copyOrder, DirectCopies, groupCount } from './direct-copies.ts'
import { Board } from './board.ts'
import type { DirectPlans, KnownMemory, Sharing } from './direct-plans.ts'
import type { EngineMemory } from './engine-memory.ts'
import { EngineSocket } from './engine-socket.ts'
import { Fetches, SLOTS } from './fetches.ts'
import { inject, injectCopied } from './injected.ts'
import type { LeftConversation } from './keeper.ts'
import {
  type DirectOpenOptions,
  PROGRESS_ACKED,
  PROGRESS_LEFT,
  PROGRESS_SENT,
  type RankEvent,
  type RankMessage,
} from './messages.ts'
import { RankWait, takeEngineEvents } from './rank-wait.ts'
import { LEAVE_MS_AT_DEADLINE, SETTLE_MS } from './run.ts'
import type { RunHost } from './run-host.ts'
import { givenChunks, Replicas } from './replicas.ts'
import { copyFetched, SlotCopies } from './slot-copies.ts'
import { SourceReads } from './source-reads.ts'

const NOTHING = new Float64Array(0)

/** One update of one rank straight into its engine's memory, without a ring. */
export class DirectRun {
  readonly options: DirectOpenOptions
  readonly bytesBefore: number
  readonly #host: RunHost
  readonly #plans: DirectPlans
  readonly #engine: EngineSocket
  readonly #conversation: DirectConversation
  readonly #progress: Int32Array
  readonly #waits: RankWait
  /** What is opened before its worker has said where it is. */
  #guessed: KnownMemory | null = null
  #started = false
  /** Why its memory could not be opened. */
  #closedToUs: string | null = null
  /** Why other hosts' memory cannot be read. */
  #unread: string | null = null
  #memory: EngineMemory | null = null
  #copies: DirectCopies | null = null
  /** What this rank reads of other daemons' memory; per owner. */
  #remotes: readonly (Uint32Array | null)[] = []
  #fetches: Fetches | null = null
  #slotCopies: SlotCopies | null = null
  /** Of all of its daemon's ranks; this one's. */
  readonly #boards: readonly Board[]
  readonly #board: Board
  #sharing: Sharing | null = null
  /** Of the plan, as the main thread knows it. */
  #groups = 0
  #chunks = 0
  #replicas: Replicas | null = null
  #reads: SourceReads | null = null
  #bytesPeak: number | null = null
  #endMs: number
  #woken = false
  #transferred = false
  /** Nothing is copied any more. */
  #released = false
  #finished = false
  #withdrawn = false
  #failure: Failure | null = null
  /** Ranks are being told to stop: others' memory may go. */
  #aborting = false
  /** The main thread has told every rank to stop. */
  #stopped = false
  #closed = false
  #answer: { readonly status: number } | null = null

  /** Binds the address. */
  constructor(host: RunHost, options: DirectOpenOptions, plans: DirectPlans) {
    const { library, rank, signal } = host
    this.#host = host
    this.options = options
    this.#plans = plans
    this.#progress = new Int32Array(options.progress)
    this.#waits = new RankWait(host)
    const { peers, member } = options
    const boards = peers.map((peer) => (peer === null ? null : new Board(peer.board)))
    this.#boards = boards.filter((board) => board !== null)
    this.#board = boards[member] as Board
    this.#endMs = options.deadlineMs + LEAVE_MS_AT_DEADLINE
    library.signalReset(signal)
    inject(library, 'open')
    this.bytesBefore = this.bytesInUse()
    const { openMs, deadlineMs: endMs } = options
    this.#conversation = new DirectConversation({
      rank: rank.rank,
      knownMap: plans.map(options.engine)?.digest ?? null,
      // the loop's own end bounds how long a worker may take to leave, see `#stop`
      limits: { openMs, endMs, leaveMs: Number.POSITIVE_INFINITY },
      http: options.http,
    })
    this.#attach()
    this.#engine = new EngineSocket(host.context, options.address)
  }

  /** Without a network an update goes another way. */
  #attach(): void {
    try {
      this.#remotes = this.#host.remoteSources.attach(this.options.remotes)
    } catch (error) {
      const { code, message } = CkptError.wrap(error)
      if (code !== 'not_supported') throw error
      this.#unread = message
    }
  }

  get #fetchesAny(): boolean {
    return this.#remotes.some((remote) => remote !== null)
  }

  bytesInUse(): number {
    const { freeBytes, totalBytes } = this.#host.library.deviceMemory(this.#host.rank.device)
    return totalBytes - freeBytes
  }

  /** Runs until the engine's worker has left and its memory is closed or in quarantine. Blocks. */
  loop(): void {
    this.begin()
    while (this.step()) this.#turn(() => this.#wait())
    this.close()
  }

  /** First step of {@link DirectRun.loop}, for whoever has the waits in hand, see `RankRun`. */
  begin(): void {
    this.#started = true
    this.#turn(() => this.#step({ type: 'start', nowMs: clockMs() }))
    this.#turn(() => inject(this.#host.library, 'look'))
    this.#turn(() => this.#guess())
  }

  /** Does what is to be done now; whether the run goes on. Does not wait. */
  step(): boolean {
    if (this.#done()) return false
    this.#turn(() => this.#work())
    return !this.#done()
  }

  /** When {@link DirectRun.step} has something to do even if nothing comes, of {@link clockMs}. */
  get nextMs(): number {
    return this.#woken ? clockMs() : this.#untilMs
  }

  get #untilMs(): number {
    const { deadlineMs } = this.#conversation
    return Math.min(this.#endMs, deadlineMs ?? this.#endMs)
  }

  #done(): boolean {
    if (clockMs() >= this.#endMs) return true
    return this.#closed && (this.#stopped || this.#finished || this.#withdrawn)
  }

  /** What fails in a turn fails the update, never the Worker. */
  #turn(work: () => void): void {
    try {
      work()
    } catch (error) {
      if (this.#failure !== null) {
        // leaving failed too: do not try for ever
        this.#endMs = Math.min(this.#endMs, clockMs() + LEAVE_MS_AT_DEADLINE)
        this.#closed = true
      }
      this.#fail(CkptError.wrap(error).failure)
    }
  }

  #work(): void {
    this.#takeEngine()
    this.#takeComplete()
    // drained before anything is looked at: what arrives from here on wakes the next wait
    this.#woken = false
    this.#aborting ||= (this.#host.library.signalTake(this.#host.signal) & SIGNAL_ABORT) !== 0
    this.#host.tend()
    for (const message of this.#host.takeMessages()) this.handle(message)
    this.#takeComplete()
    if (!this.#aborting) this.#copy()
    this.#openGuessed()
    this.#closeReleased()
    const { deadlineMs } = this.#conversation
    if (deadlineMs !== null && clockMs() >= deadlineMs) {
      // what has come since the wait is in time
      this.#takeEngine()
      this.#step({ type: 'tick', nowMs: clockMs() })
    }
  }

  #wait(): void {
    this.#waits.until(this.#untilMs, this.#closed ? null : this.#engine, this.#woken)
  }

  #takeEngine(): void {
    if (this.#closed) return
    takeEngineEvents(this.#engine, (event) => this.#step(event))
  }

  /** What the main thread says about this run. */
  handle(message: RankMessage): void {
    const nowMs = clockMs()
    switch (message.type) {
      case 'http': {
        const { ok, status, message: words } = message
        this.#answer = { status }
        // a worker replies, and its engine answers, within microseconds
        this.#takeEngine()
        return this.#step({ type: 'http', ok, status, message: words, nowMs })
      }
      case 'announce':
        if (this.#conversation.phase !== 'looked') return
        inject(this.#host.library, 'begin')
        Atomics.store(this.#progress, PROGRESS_SENT, 1)
        this.#step({ type: 'begin', nowMs })
        // what is still where it was is opened while the copies are made
        if (this.#guessed === null) this.#openMemory()
        return
      case 'copy':
        return this.#startCopies(message.fetch, message.shares)
      case 'leave':
        this.#withdrawn = true
        if (this.options.prepares && this.#conversation.phase === 'looked') this.#share()
        this.#endMs = Math.min(this.#endMs, nowMs + message.leaveMs)
        return this.#step({ type: 'leave', reason: message.reason, nowMs })
      case 'release':
        return this.#release()
      case 'abort':
        return this.#stop(message.failure, message.leaveMs)
      default:
        throw new Error(`a direct run does not take ${message.type}`)
    }
  }

  /**
   * While the engine is asked its memory is opened where it was the last time. Nothing is copied before its worker has said that
   * it is there still; an allocation that it has freed meanwhile is held no longer than until then.
   */
  #guess(): void {
    const known = this.#plans.memory(this.options.engine)
    if (known === null) return
    this.#memory = this.#makeMemory(known)
    this.#guessed = known
  }

  /**
   * One allocation between two looks at what else there is to do: until its worker has connected those that do not take long, and
   * while copies are on their way. In between the worker waits for every word.
   */
  #openGuessed(): void {
    const memory = this.#memory
    if (this.#guessed === null || memory === null || memory.isOpen || this.#transferred) return
    const { phase, worker } = this.#conversation
    const early = phase === 'open' && !worker.connected && !memory.nextIsSlow
    if (!early && !(phase === 'copying' && worker.connected)) return
    this.#woken = true
    try {
      memory.openNext()
    } catch (error) {
      if (!early || CkptError.wrap(error).code === 'device_lost') throw error
      // perhaps of an engine that has ended: its worker says what there is now
      this.#forgetGuess()
    }
  }

  #forgetGuess(): void {
    this.#guessed = null
    this.#memory?.free()
    this.#memory = null
  }

  /** Within a generation nothing of it is freed: what was opened is what its worker means. */
  #checkGuess(): void {
    const now = this.#plans.memory(this.options.engine)
    if (this.#guessed !== null && !Bun.deepEquals(this.#guessed, now)) this.#forgetGuess()
  }

  #makeMemory(known: KnownMemory): EngineMemory {
    const { library, rank } = this.#host
    return this.#plans.engineMemory(library, rank.device, known, this.#boards.length > 1)
  }

  #openMemory(): void {
    const known = this.#plans.memory(this.options.engine) as KnownMemory
    try {
      this.#memory ??= this.#makeMemory(known)
      this.#memory.open()
    } catch (error) {
      const { code, message } = CkptError.wrap(error)
      if (code === 'device_lost') throw error
      this.#closedToUs = message
    }
  }

  /** From here on the engine is torn until it has all. */
  #startCopies(fetch: FetchPlan | null, shares: boolean): void {
    if (this.#failure !== null) return
    const memory = this.#memory
    const { library, signal } = this.#host
    const { layoutKey, buffers, readings } = this.options
    const whole = this.#plan()
    if (memory === null || 'reason' in whole) throw new Error('nothing says where to copy')
    if (shares) this.#share()
    const plan = this.#sharing?.shared.plan ?? whole
    const layout = this.#plans.layout(layoutKey)
    this.#reads = new SourceReads(library, signal, copyOrder(plan, layout), readings)
    const staging = (bytes: number) => this.#staging(bytes)
    const copied = (first: number, end: number) => this.#replicas?.copied(first, end)
    const target = { library, signal, plan, layout, buffers, staging, copied }
    this.#copies = new DirectCopies(target, memory)
    if (fetch !== null) this.#startFetches(fetch, plan, memory, this.#copies)
    else if (plan.fetched.length > 0) throw new Error('nothing says what is read of other hosts')
    this.#startReplicas(memory)
    this.#step({ type: 'copying', nowMs: clockMs() })
    this.#woken = true
  }

  #startFetches(
    fetch: FetchPlan,
    plan: DirectPlan,
    memory: EngineMemory,
    { queue }: DirectCopies,
  ): void {
    const { library, signal } = this.#host
    const { layoutKey, peers, member } = this.options
    const { sources } = this.#plans.layout(layoutKey)
    const slots = (bytes: number) => this.#slots(bytes)
    const remotes = this.#remotes
    this.#chunks = fetch.chunks.length - 1
    this.#fetches = new Fetches({
      library,
      signal,
      plan: fetch,
      sources,
      remotes,
      peers,
      member,
      busy: queue.h2d,
      slots,
    })
    const cut = this.#plans.cut(plan, fetch)
    const copied = (chunks: number) => this.#replicas?.fetched(chunks)
    this.#slotCopies = new SlotCopies(cut, this.#fetches, memory, queue, copied)
  }

  /** Works out what ranks take from each other, all of which have said what they copy. */
  #share(): void {
    const plan = this.#plan()
    if (this.#boards.length < 2 || 'reason' in plan) return
    this.#sharing = this.#plans.sharing(plan, this.#boards, this.#boards.indexOf(this.#board))
  }

  #startReplicas(memory: EngineMemory): void {
    const [sharing, fetches] = [this.#sharing, this.#fetches]
    if (sharing === null) return
    const { share, shared, fragments } = sharing
    const ofChunks =
      fetches === null ? [] : givenChunks(shared.givenFetched, fragments, fetches.ranges)
    const { library, signal } = this.#host
    const others = this.options.peers.flatMap((peer, at) => {
      return peer === null || at === this.options.member ? [] : peer.signal
    })
    const own = { share, shared, fragments, givenChunks: ofChunks, own: this.#board }
    const target = { library, signal, ...own, boards: this.#boards, signals: others }
    this.#replicas = new Replicas(target, memory)
    // chunks of which this rank needs nothing
    this.#replicas.fetched(this.#slotCopies?.complete ?? 0)
  }

  #plan(): DirectPlan | NotDirect {
    const { engine, layoutKey, away } = this.options
    return this.#plans.plan(engine, layoutKey, away)
  }

  #slots(bytes: number): Handle {
    const { library, rank } = this.#host
    return this.#plans.slots(library, bytes, rank.numaNode)
  }

  #staging(bytes: number): Handle {
    const { library, rank } = this.#host
    return this.#plans.staging(library, bytes, rank.numaNode)
  }

  #takeComplete(): void {
    const copies = this.#copies
    if (copies === null || this.#failure !== null || this.#transferred) return
    const before = this.#complete
    copies.takeComplete(clockMs())
    this.#replicas?.takeComplete(clockMs())
    if (this.#complete === before) return
    this.#waits.moved()
    Atomics.store(this.#progress, PROGRESS_ACKED, this.#complete)
  }

  /** Of groups and chunks, as many as the main thread was told of. */
  get #complete(): number {
    const done = (this.#copies?.complete ?? 0) + (this.#slotCopies?.complete ?? 0)
    const [sharing, replicas] = [this.#sharing, this.#replicas]
    if (sharing === null || replicas === null) return done
    const all = groupCount(sharing.shared.plan) + this.#chunks + replicas.count
    return Math.floor(((this.#groups + this.#chunks) * (done + replicas.complete)) / all)
  }

  #copy(): void {
    const [copies, reads] = [this.#copies, this.#reads]
    if (copies === null || reads === null || this.#failure !== null || this.#transferred) return
    // what its worker has left may be used again
    if (!this.#conversation.worker.connected) return
    if (this.#fetches !== null && this.#slotCopies !== null) {
      copyFetched(this.#fetches, this.#slotCopies, clockMs())
    }
    copies.enqueue(reads.take(), clockMs())
    this.#replicas?.enqueue(clockMs())
    injectCopied(this.#host.library, this.#complete, this.#groups + this.#chunks)
    const fetched = (this.#fetches?.done ?? true) && (this.#slotCopies?.done ?? true)
    if (!copies.done || !fetched || this.#replicas?.done === false) return
    this.#transferred = true
    this.#bytesPeak = this.bytesInUse()
    const readBy = this.#fetchesAny ? this.#host.remoteSources.transports() : []
    const takenBytes = this.#sharing?.shared.takenBytes ?? 0
    this.#host.report(this.options.run, { type: 'transferred', readBy, takenBytes })
  }

  #release(): void {
    if (this.#failure !== null) return
    inject(this.#host.library, 'release')
    this.#step({ type: 'end', nowMs: clockMs() })
    this.#released = true
  }

  /** While the engine answers, one allocation between two looks at that: closing 16 GB takes 5 ms. */
  #closeReleased(): void {
    if (this.#released && this.#memory?.closeNext()) this.#woken = true
  }

  /** Every rank's signal has its abort bit before any rank gets here. */
  #stop(failure: Failure, leaveMs: number): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#endMs = Math.min(this.#endMs, clockMs() + leaveMs)
    const told = this.#failure !== null
    this.#failure ??= failure
    if (!told) this.#step({ type: 'abort', failure, nowMs: clockMs() })
    // a read of a daemon that is gone would go on for seconds
    this.#endFetches()
  }

  /** Reads that go on are ended first: their end is waited for. */
  #endFetches(): void {
    const goOn = this.#failure !== null || this.#fetches?.done === false
    if (goOn && this.#fetchesAny) this.#host.remoteSources.drop()
    this.#fetches?.close()
    this.#fetches = null
  }

  #step(event: DirectEvent): void {
    if (this.#closed) return
    for (const action of this.#conversation.step(event)) this.#act(action)
    if (this.#conversation.hasLeft) Atomics.store(this.#progress, PROGRESS_LEFT, 1)
  }

  #act(action: DirectAction): void {
    const { run } = this.options
    switch (action.type) {
      case 'send':
        return this.#engine.send(action.body)
      case 'looked':
        return this.#looked(action.answer)
      case 'begun':
        return this.#host.report(run, this.#begun())
      case 'whole':
        Atomics.store(this.#progress, PROGRESS_SENT, 0)
        return
      case 'refused':
        if (action.said) Atomics.store(this.#progress, PROGRESS_SENT, 0)
        return this.#host.report(run, { type: 'not_direct', reason: action.reason })
      case 'finished':
        this.#finished = true
        return this.#host.report(run, { type: 'finished', dialect: null })
      case 'failed':
        return this.#noteFailure(action.failure)
      case 'close':
        this.#closed = true
    }
  }

  #begun(): RankEvent {
    inject(this.#host.library, 'begun')
    const memory = this.#memory
    if (memory !== null && this.#closedToUs === null)
      return { type: 'begun', streams: memory.streams }
    return { type: 'not_direct', reason: this.#closedToUs ?? "the engine's memory is not open" }
  }

  #looked(answer: LookAnswer): void {
    const { run, engine } = this.options
    inject(this.#host.library, 'looked')
    this.#host.openedAnew(engine)
    if (this.#unread !== null) {
      return this.#host.report(run, { type: 'not_direct', reason: this.#unread, lasts: true })
    }
    const plan = this.#plans.take(engine, answer) ?? this.#plan()
    this.#checkGuess()
    if ('reason' in plan) {
      return this.#host.report(run, { type: 'not_direct', reason: plan.reason })
    }
    if (this.options.prepares) {
      // a device, a driver and pinned memory take longer the first time
      this.#openMemory()
      if (plan.staging.bytes > 0) this.#staging(plan.staging.bytes)
      if (plan.fetched.length > 0) this.#slots(SLOTS * SLOT_BYTES)
    }
    if (this.#closedToUs !== null) {
      return this.#host.report(run, { type: 'not_direct', reason: this.#closedToUs })
    }
    const { bytes } = plan
    const needs = this.#plans.needs(plan)
    const shareableBytes =
      this.#boards.length > 1 ? this.#plans.write(this.#board, plan, this.#host.rank.device) : 0
    const groups = groupCount(plan)
    this.#groups = groups
    this.#host.report(run, { type: 'looked', groups, bytes, shareableBytes, needs })
  }

  /** Something of this rank failed: its engine must be told. */
  #fail(failure: Failure): void {
    if (this.#failure !== null) return
    const phase = this.#conversation.updatePhase
    const whole = { rank: this.#host.rank.rank, phase, ...failure }
    this.#noteFailure(whole)
    try {
      this.#step({ type: 'abort', failure: whole, nowMs: clockMs() })
    } catch {
      // it cannot even be told
      this.#closed = true
    }
  }

  #noteFailure(failure: Failure): void {
    if (this.#failure !== null) return
    this.#failure = { rank: this.#host.rank.rank, ...failure }
    // perhaps its memory could not be opened while copies were made: the next update opens all of it before it begins
    this.#plans.forgetMemory(this.options.engine)
    const connected = this.#conversation.everConnected
    const told = { failure: this.#failure, connected, dialect: null }
    this.#host.report(this.options.run, { type: 'failed', ...told })
  }

  /** Whether no copy writes the engine's memory any more. Blocks shortly. */
  settle(): boolean {
    return this.#memory?.settle(SETTLE_MS) ?? true
  }

  /** What is left of a conversation whose worker may still connect, or has not left. */
  #leftConversation(): LeftConversation | null {
    if (this.#finished || !this.#started) return null
    const { http, engine } = this.options
    const { everConnected, worker } = this.#conversation
    const gone = everConnected && !worker.connected && (this.#answer !== null || !http)
    if (gone) return null
    const answer = this.#answer
    // nothing of ours is read by it
    const { connected } = worker
    const left = { dialect: null, everConnected, connected, owes: false }
    return { socket: this.#engine, engine, http, answer, ...left }
  }

  /** Closes everything, or leaves it in quarantine. Also ends a run that has not begun. Blocks shortly. */
  close(): void {
    const { library, signal } = this.#host
    const { run } = this.options
    const nowMs = clockMs()
    this.#endFetches()
    const settled = this.settle()
    if (!settled) this.#plans.leaveStaging(this.#memory)
    const conversation = this.#leftConversation()
    if (conversation === null) this.#engine.close()
    if (!settled || conversation !== null) {
      const ring = settled ? null : this.#memory
      this.#host.quarantine({ run, ring, read: false, settled, conversation })
    }
    if (settled) this.#memory?.free()
    library.signalReset(signal)
    this.#host.report(run, {
      type: 'closed',
      quarantinedBytes: 0,
      settled,
      bytesPeak: this.#bytesPeak,
      bytesAfter: this.bytesInUse(),
      stages: {
        h2d: this.#copies?.queue.h2d.take(nowMs) ?? NOTHING,
        broadcast: this.#replicas?.busy.take(nowMs) ?? NOTHING,
        reload: NOTHING,
      },
      turnaroundsMs: NOTHING,
    })
  }
}
