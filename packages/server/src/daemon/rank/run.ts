import {
  CkptError,
  Conversation,
  type ConversationAction,
  type ConversationEvent,
  type Dialect,
  Executor,
  type ExecutorAction,
  type Failure,
  pickleHandle,
} from '@ckpt/core'
import { SIGNAL_ABORT } from '@ckpt/cuda'
import { type Collective, makeCollective } from './collective.ts'
import { RingCopies } from './copies.ts'
import { EngineSocket } from './engine-socket.ts'
import { BusyIntervals } from './intervals.ts'
import { clockMs } from '../clock.ts'
import {
  type OpenAnswer,
  type OpenOptions,
  PROGRESS_ACKED,
  PROGRESS_LEFT,
  PROGRESS_SENT,
  type RankMessage,
} from './messages.ts'
import { inject } from './injected.ts'
import type { HeldPlan } from './plans.ts'
import type { LeftConversation } from './keeper.ts'
import { RankWait, takeEngineEvents } from './rank-wait.ts'
import { Ring } from './ring.ts'
import type { RunHost } from './run-host.ts'
import { SourceReads } from './source-reads.ts'

/** For copies in flight, after everything else has ended. */
export const SETTLE_MS = 250
/** A wait that was this long has slept: nothing was there to be done before it ended. */
const SLEPT_MS = 0.02
/** Between the conversation's own deadline, which says what was waited for, and the end of the loop. */
export const LEAVE_MS_AT_DEADLINE = 1000

/** One update on one rank: drives the executor and the conversation from one blocking loop. */
export class RankRun {
  readonly options: OpenOptions
  readonly bytesBefore: number
  readonly #host: RunHost
  readonly #held: HeldPlan
  readonly #ring: Ring
  readonly #shared: ReturnType<Ring['share']>
  readonly #copies: RingCopies
  readonly #executor: Executor
  readonly #reads: SourceReads
  readonly #engine: EngineSocket | null
  readonly #reload = new BusyIntervals()
  readonly #progress: Int32Array
  readonly #waits: RankWait
  readonly #todo: ExecutorAction[] = []
  /** Buckets whose lists are pickled as soon as nothing more urgent is to be done. */
  readonly #toPickle: number[] = []
  #conversation: Conversation | null = null
  #bytesPeak: number | null = null
  #endMs: number
  #failure: Failure | null = null
  /** The main thread has told every rank to stop. */
  #stopped = false
  #finished = false
  #conversationClosed = false
  #engineLeft = true
  /** What the engine's request has returned; it may come after the conversation has closed. */
  #answer: { readonly status: number } | null = null
  readonly #collective: Collective | null
  /** It did not end in time: its streams may still run. */
  #collectiveStuck = false
  /** The signal was drained after this turn had looked at what it announces. */
  #woken = false
  #everyoneOpen = false
  /** A bucket that was complete before every engine worker had mapped its ring. */
  #early: number | null = null
  /** The last wait has seen that its socket or the connection has something. */
  #engineReady = true
  /** When the loop was last woken: what has been done since then kept the engine waiting. */
  #awakeMs = clockMs()
  readonly #turnaroundsMs: number[] = []
  /** Lists that were sent: from the first on the engine is torn until it has all. */
  #sent = 0

  /** Allocates the ring and begins to fill it, binds the address, joins the others. Leaves nothing behind when it throws. */
  constructor(host: RunHost, options: OpenOptions, held: HeldPlan) {
    const { library, rank } = host
    this.#host = host
    this.options = options
    this.#held = held
    this.#progress = new Int32Array(options.progress)
    this.#waits = new RankWait(host)
    this.#endMs = options.deadlineMs + LEAVE_MS_AT_DEADLINE
    library.signalReset(host.signal)
    inject(library, 'open')
    this.bytesBefore = this.bytesInUse()
    this.#ring = new Ring(library, rank.device, held.plan.ringBytes)
    let engine: EngineSocket | null = null
    try {
      this.#collective = makeCollective(host, options, this.#ring)
      this.#copies = new RingCopies({
        library,
        signal: host.signal,
        ring: this.#ring,
        held,
        buffers: options.buffers,
        remotes: host.remoteSources.attach(options.remotes),
        collective: this.#collective,
        ranks: options.ranks,
      })
      this.#reads = new SourceReads(library, host.signal, held.order, options.readings)
      this.#executor = new Executor(held.plan, this.#number, options.ranks, this.#reads.take())
      // what follows, and what the engine does before it has mapped the ring, takes its time
      if (this.#collective === null) this.#turn(() => this.#startCopies())
      this.#shared = this.#ring.share()
      if (options.address !== null) engine = new EngineSocket(host.context, options.address)
      this.#engine = engine
      this.#collective?.join()
    } catch (error) {
      engine?.close()
      // waits for the copies that have begun; what they or it say is not the reason
      try {
        this.#ring.free()
      } catch {}
      throw error
    }
  }

  #converse(): Conversation {
    const { openMs, deadlineMs, http, dialect } = this.options
    const totalMs = Math.max(1, deadlineMs - clockMs())
    return new Conversation({
      handle: pickleHandle({
        handle: this.#shared.handle,
        bytes: this.#ring.bytes,
        refcounter: this.#shared.refcounterName,
      }),
      rank: this.#host.rank.rank,
      limits: {
        openMs,
        replyMs: totalMs,
        totalMs,
        // the loop's own end bounds it, see `#stop`
        leaveMs: totalMs + LEAVE_MS_AT_DEADLINE,
      },
      http,
      ...(dialect === null ? {} : { dialect }),
    })
  }

  /** Its ring, as it is after it was opened. */
  get opened(): OpenAnswer {
    const { bytesBefore } = this
    return { bytesBefore, bytesAfter: this.bytesInUse(), streams: [this.#ring.copyStream] }
  }

  bytesInUse(): number {
    const { freeBytes, totalBytes } = this.#host.library.deviceMemory(this.#host.rank.device)
    return totalBytes - freeBytes
  }

  /** Runs until the engine's worker has left and the ring is freed or in quarantine. Blocks. */
  loop(): void {
    this.begin()
    while (this.step()) this.#turn(() => this.#wait())
    this.close()
  }

  /** First step of {@link RankRun.loop}, for whoever has the waits in hand: {@link RankRun.step} and `close` follow. */
  begin(): void {
    this.#turn(() => this.#begin())
  }

  /** Does what is to be done now; whether the run goes on. Does not wait. */
  step(): boolean {
    if (this.#done()) return false
    this.#turn(() => this.#work())
    return !this.#done()
  }

  /** When {@link RankRun.step} has something to do even if nothing comes, of {@link clockMs}. */
  get nextMs(): number {
    return this.#woken ? clockMs() : this.#untilMs
  }

  get #untilMs(): number {
    const deadlineMs = this.#conversationClosed ? null : (this.#conversation?.deadlineMs ?? null)
    return Math.min(this.#endMs, deadlineMs ?? this.#endMs)
  }

  /** What fails in a turn fails the update, never the Worker. */
  #turn(work: () => void): void {
    try {
      work()
    } catch (error) {
      if (this.#failure !== null) {
        // leaving failed too: do not try for ever
        this.#endMs = Math.min(this.#endMs, clockMs() + LEAVE_MS_AT_DEADLINE)
      }
      this.#failSafely(CkptError.wrap(error).failure)
    }
  }

  #failSafely(failure: Failure): void {
    try {
      this.#fail(failure)
    } catch {
      // the conversation cannot even be told: its ring goes into quarantine
      this.#conversationClosed = true
    }
  }

  #done(): boolean {
    if (clockMs() >= this.#endMs) return true
    return this.#conversationClosed && (this.#stopped || this.#finished)
  }

  /** Fills the ring. With others only when every rank has joined. */
  #startCopies(): void {
    this.#perform(this.#executor.start())
  }

  #begin(): void {
    if (this.#engine !== null) {
      this.#engineLeft = false
      this.#conversation = this.#converse()
    }
    this.#converseStep({ type: 'start', nowMs: clockMs() })
    if (this.#engine === null) this.#opened()
    // of a copy that came before
    const failure = this.#failure
    if (failure !== null) this.#converseStep({ type: 'abort', failure, nowMs: clockMs() })
    if (this.#collective !== null) this.#startCopies()
  }

  /** Among the ranks of all daemons. */
  get #number(): number {
    return this.options.ranks[this.options.member] as number
  }

  #opened(): void {
    this.#host.report(this.options.run, { type: 'opened' })
    // nobody else has to
    if (this.options.ranks.length === 1) this.#everyoneOpen = true
  }

  #work(): void {
    // what an engine waits for comes first
    if (this.#engineReady) this.#takeEngine()
    this.#takeComplete()
    // drained before anything is looked at: what arrives from here on wakes the next wait
    this.#woken = false
    this.#aborting()
    // a ring is not freed while a broadcast waits on the device: that would wait for it
    this.#host.tend(!this.#collective?.isCommunicator)
    for (const message of this.#host.takeMessages()) this.handle(message)
    this.#takeRead()
    this.#takeComplete()
    const deadlineMs = this.#conversation?.deadlineMs ?? null
    if (deadlineMs !== null && clockMs() >= deadlineMs) {
      // what has come since the wait is in time
      this.#takeEngine()
      this.#converseStep({ type: 'tick', nowMs: clockMs() })
    }
    this.#pickle()
  }

  /** Whether the abort bit is set. Drains the signal, so the next wait must not sleep. */
  #aborting(): boolean {
    return (this.#host.library.signalTake(this.#host.signal) & SIGNAL_ABORT) !== 0
  }

  /** What has come into host memory since, of a checkpoint that is still being read. */
  #takeRead(): void {
    if (this.#failure !== null) return
    const before = this.#reads.parts
    if (before === this.#held.plan.segmentCount) return
    const segments = this.#reads.take()
    if (segments === before) return
    this.#perform(this.#executor.step({ type: 'readable', segments }))
  }

  #takeComplete(): void {
    if (this.#failure !== null) return
    for (const bucket of this.#copies.takeComplete(clockMs())) {
      this.#waits.moved()
      this.#perform(this.#executor.step({ type: 'copied', bucket }))
    }
  }

  #takeEngine(): void {
    const engine = this.#engine
    if (engine === null || this.#conversationClosed) return
    takeEngineEvents(engine, (event) => this.#converseStep(event))
  }

  #wait(): void {
    const nowMs = clockMs()
    const engine = this.#conversationClosed ? null : this.#engine
    this.#engineReady = this.#waits.until(this.#untilMs, engine, this.#woken)
    const awakeMs = clockMs()
    if (awakeMs - nowMs >= SLEPT_MS) this.#awakeMs = awakeMs
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
        return this.#converseStep({ type: 'http', ok, status, message: words, nowMs })
      }
      case 'announce':
        this.#everyoneOpen = true
        return this.#mayAnnounce()
      case 'release':
        if (this.#failure !== null) return
        inject(this.#host.library, 'release')
        if (this.#conversation === null) return this.#finish(null)
        return this.#converseStep({ type: 'end', nowMs })
      case 'abort':
        return this.#stop(message.failure, message.leaveMs)
      default:
        throw new Error(`a run does not take ${message.type}`)
    }
  }

  /** Every rank's signal has its abort bit before any rank gets here: no rank announces what the end of the collective spoils. */
  #stop(failure: Failure, leaveMs: number): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#endMs = Math.min(this.#endMs, clockMs() + leaveMs)
    const told = this.#failure !== null
    this.#failure ??= failure
    // first, since the end of the collective may take its time
    if (!told) this.#converseStep({ type: 'abort', failure, nowMs: clockMs() })
    this.#collectiveStuck = this.#collective?.abort() === false
    // a read of a daemon that is gone would go on for seconds
    if (this.options.remotes.some((remote) => remote !== null)) this.#host.remoteSources.drop()
  }

  #readBy(): string[] {
    const reads = this.options.remotes.some((remote) => remote !== null)
    return reads ? this.#host.remoteSources.transports() : []
  }

  #perform(actions: readonly ExecutorAction[]): void {
    this.#todo.push(...actions)
    if (this.#todo.length > actions.length) return // the caller further up is performing
    while (this.#todo.length > 0) {
      if (this.#failure === null) this.#act(this.#todo[0] as ExecutorAction)
      this.#todo.shift()
    }
    if (this.#failure === null) this.#copies.flush()
  }

  #act(action: ExecutorAction): void {
    switch (action.type) {
      case 'copy':
        return this.#copies.copy(action.segment, clockMs())
      case 'broadcast':
        return this.#copies.broadcastSegment(action.segment, action.root)
      case 'record':
        if (this.options.address !== null && !this.#held.hasList(action.bucket)) {
          this.#toPickle.push(action.bucket)
        }
        return this.#copies.record(action.bucket)
      case 'announce':
        return this.#announce(action.bucket)
      case 'finish':
        this.#bytesPeak = this.bytesInUse()
        return this.#host.report(this.options.run, {
          type: 'transferred',
          readBy: this.#readBy(),
          takenBytes: 0,
        })
    }
  }

  #announce(bucket: number): void {
    this.#woken = true
    // The bit is set before a collective is aborted, so a copy that was seen complete while it is clear is a good one.
    if (this.#aborting()) return
    if (this.#conversation === null) return this.#acked(bucket)
    if (!this.#everyoneOpen) {
      this.#early = bucket
      return
    }
    inject(this.#host.library, `list-${bucket}`)
    this.#sent++
    Atomics.store(this.#progress, PROGRESS_SENT, this.#sent)
    this.#reload.begin(clockMs())
    const list = this.#held.list(bucket)
    this.#converseStep({ type: 'announce', bucket, list, nowMs: clockMs() })
    this.#turnaroundsMs.push(clockMs() - this.#awakeMs)
  }

  #mayAnnounce(): void {
    if (!this.#everyoneOpen || this.#failure !== null) return
    const bucket = this.#early
    this.#early = null
    if (bucket !== null) this.#perform([{ type: 'announce', bucket }])
  }

  #acked(bucket: number): void {
    this.#waits.moved()
    Atomics.store(this.#progress, PROGRESS_ACKED, bucket + 1)
    this.#perform(this.#executor.step({ type: 'acked', bucket }))
  }

  /** One list per turn, so that a bucket that is complete meanwhile does not wait for all of them. */
  #pickle(): void {
    const bucket = this.#toPickle.shift()
    if (bucket === undefined) return
    this.#held.list(bucket)
    if (this.#toPickle.length > 0) this.#woken = true
  }

  #converseStep(event: ConversationEvent): void {
    if (this.#conversation === null) {
      if (event.type === 'abort' && this.#engine === null) this.#conversationClosed = true
      return
    }
    if (this.#conversationClosed) return
    for (const action of this.#conversation.step(event)) this.#converseAct(action)
    // only now: the step that opened it may have failed it too
    this.#mayAnnounce()
    if (this.#failure === null && this.#conversation.hasLeft) {
      Atomics.store(this.#progress, PROGRESS_LEFT, 1)
    }
  }

  #converseAct(action: ConversationAction): void {
    switch (action.type) {
      case 'send':
        return this.#engine?.send(action.body)
      case 'opened':
        if (this.options.engine !== null) this.#host.openedAnew(this.options.engine)
        return this.#opened()
      case 'acked':
        this.#reload.end(clockMs())
        return this.#acked(action.bucket)
      case 'ring_free':
        this.#engineLeft = true
        if (this.#failure === null) this.#ring.free()
        return
      case 'finished':
        return this.#finish(action.dialect)
      case 'failed':
        return this.#noteFailure(action.failure)
      case 'close':
        this.#engineLeft = action.ringFree
        this.#conversationClosed = true
    }
  }

  #finish(dialect: Dialect | null): void {
    this.#finished = true
    if (this.#conversation === null) this.#conversationClosed = true
    this.#host.report(this.options.run, { type: 'finished', dialect })
  }

  /** Something of this rank failed: its engine must be told. */
  #fail(failure: Failure): void {
    if (this.#failure !== null) return
    this.#noteFailure(failure)
    this.#converseStep({ type: 'abort', failure, nowMs: clockMs() })
  }

  #noteFailure(failure: Failure): void {
    if (this.#failure !== null) return
    const { rank } = this.#host.rank
    this.#failure = { rank, phase: this.#phase(), ...failure }
    const connected = this.#conversation?.everConnected ?? true
    const seen = this.#conversation?.dialect ?? null
    const dialect = seen === this.options.dialect ? null : seen
    const told = { failure: this.#failure, connected, dialect }
    this.#host.report(this.options.run, { type: 'failed', ...told })
  }

  #phase(): Failure['phase'] {
    const begun = this.#conversation !== null || this.#engine === null
    const phase = begun ? this.#conversation?.phase : 'open'
    return phase === undefined || phase === 'leaving' || phase === 'closed' ? 'transfer' : phase
  }

  /** Whether no copy writes the ring any more. Blocks shortly. */
  settle(): boolean {
    if (this.#ring.freed) return true
    return !this.#collectiveStuck && this.#ring.settle(SETTLE_MS)
  }

  /** After a failure: what is left of a conversation whose worker may still connect, or has not left. */
  #leftConversation(): LeftConversation | null {
    const conversation = this.#conversation
    if (this.#engine === null || conversation === null) return null
    if (this.#finished && this.#engineLeft) return null
    const { http, engine } = this.options
    const { connected, owes } = conversation.worker
    const { dialect, everConnected } = conversation
    const gone = everConnected && !connected && (this.#answer !== null || !http)
    if (gone && this.#engineLeft) return null
    const answer = this.#answer
    return { socket: this.#engine, engine, dialect, http, answer, everConnected, connected, owes }
  }

  /** Frees everything, or leaves the ring in quarantine. Also ends a run that has not begun. Blocks shortly. */
  close(): void {
    const { library, signal } = this.#host
    const nowMs = clockMs()
    const settled = this.settle()
    const free = settled && this.#engineLeft
    const quarantinedBytes = free ? 0 : this.#ring.bytes
    const conversation = this.#leftConversation()
    if (conversation === null) this.#engine?.close()
    if (!free || conversation !== null) {
      const { run } = this.options
      const ring = free ? null : this.#ring
      this.#host.quarantine({ run, ring, read: !this.#engineLeft, settled, conversation })
    }
    if (free) this.#ring.free()
    library.signalReset(signal)
    this.#host.report(this.options.run, {
      type: 'closed',
      quarantinedBytes,
      settled,
      bytesPeak: this.#bytesPeak,
      bytesAfter: this.bytesInUse(),
      stages: {
        h2d: this.#copies.h2d.take(nowMs),
        broadcast: this.#copies.broadcast.take(nowMs),
        reload: this.#reload.take(nowMs),
      },
      turnaroundsMs: Float64Array.from(this.#turnaroundsMs),
    })
  }
}
