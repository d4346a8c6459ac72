import { CkptError } from '@ckpt/core'
import type { Library, ZmqContext } from '@ckpt/cuda'
import type { RankInfo } from '../types.ts'
import { clockMs } from '../clock.ts'
import { IdleCollection } from '../idle-collection.ts'
import { DirectPlans } from './direct-plans.ts'
import { DirectRun } from './direct-run.ts'
import {
  type DirectOpenOptions,
  NO_RUN,
  type OpenAnswer,
  type OpenOptions,
  type RankAnswers,
  type RankEvent,
  type RankMessage,
  type RankReport,
  type RankRequest,
} from './messages.ts'
import type { EngineSocket } from './engine-socket.ts'
import { inject } from './injected.ts'
import { endStreams, freeBuffers } from './left-behind.ts'
import { KeptCommunicator } from './kept-communicator.ts'
import { measureH2d } from './measure.ts'
import { PlanShelf } from './plans.ts'
import { type KeptRun, Quarantine } from './quarantine.ts'
import { rehearse } from './rehearsal.ts'
import { RemoteSources } from './remote-sources.ts'
import { type LeftAddresses, releaseLeft } from './release-left.ts'
import { RankRun } from './run.ts'
import type { RunHost } from './run-host.ts'
import { StopFlag } from './stop-flag.ts'

const SWEEP_MS = 100
/** For a stream that is idle to say so. */
const END_MS = 5
/** Messages of a run that goes on. */
const FOR_RUN: readonly RankMessage['type'][] = [
  'announce',
  'copy',
  'http',
  'leave',
  'release',
  'abort',
]
/** The most messages that are taken at once. */
const MESSAGES_MAX = 10_000

/** What a rank's Worker has of its thread. */
export interface RankWorkerThread {
  send(report: RankReport): void
  /** The next message that has arrived; null: none. */
  receive(): RankMessage | null
  /** Takes a run to its end and then calls `end`, for whoever has the waits in hand; absent: the run's own loop does, and blocks. */
  drive?(run: RankRun | DirectRun, end: () => void): void
  /** The Worker has closed. */
  exit(): void
}

export interface RankWorkerParts {
  readonly library: Library
  readonly context: ZmqContext
  readonly rank: RankInfo
  /** See {@link ranksSpin}. */
  readonly spins: boolean
  readonly thread: RankWorkerThread
}

/** The Worker of one rank: idle in its event loop between updates, in the loop of a {@link RankRun} or {@link DirectRun} during one. */
export class RankWorker implements RunHost {
  readonly library: Library
  readonly context: ZmqContext
  readonly signal: number
  readonly rank: RankInfo
  readonly spins: boolean
  readonly communicator: KeptCommunicator
  readonly remoteSources: RemoteSources
  readonly #thread: RankWorkerThread
  readonly #plans = new PlanShelf()
  readonly #directPlans = new DirectPlans((buffers) => this.#send({ type: 'pinned', buffers }))
  readonly #quarantine: Quarantine
  readonly #later: RankMessage[] = []
  /** Else it is done in the middle of a later run, which stands still: 3 ms of each direct one with 14,000 tensors. */
  readonly #collection = new IdleCollection(() => this.#run === null)
  #sweeper: ReturnType<typeof setInterval> | null = null
  #run: RankRun | DirectRun | null = null
  #sweptMs = 0

  constructor({ library, context, rank, spins, thread }: RankWorkerParts) {
    this.#thread = thread
    this.rank = rank
    this.spins = spins
    this.library = library
    this.communicator = new KeptCommunicator(library, rank.device, (communicator) =>
      this.#send({ type: 'communicator', communicator }),
    )
    this.remoteSources = new RemoteSources(library, rank.networkDevices, (handles) =>
      this.#send({ type: 'reads', handles }),
    )
    this.context = context
    this.signal = this.library.signalCreate()
    this.#quarantine = new Quarantine({
      settled: (run) => this.#send({ type: 'settled', run }),
      freed: (run, bytes) => this.#send({ type: 'ring_freed', run, bytes }),
      kept: (address) => this.#send({ type: 'kept', address }),
      left: (address) => this.#send({ type: 'left', address }),
    })
    const memory = this.library.deviceMemory(rank.device)
    this.#send({ type: 'ready', signal: this.signal, memory })
  }

  #send(report: RankReport): void {
    this.#thread.send(report)
  }

  report(run: number, event: RankEvent): void {
    this.#send({ type: 'event', run, event })
  }

  quarantine(kept: KeptRun): void {
    this.#quarantine.keep(kept)
    this.#sweeper ??= setInterval(() => this.#sweep(), SWEEP_MS)
  }

  openedAnew(engine: string): void {
    this.#quarantine.openedAnew(engine)
    this.#sweptMs = 0
  }

  tend(frees = true): void {
    const nowMs = clockMs()
    if (this.#quarantine.empty || nowMs < this.#sweptMs + SWEEP_MS) return
    this.#sweptMs = nowMs
    this.#sweep(frees)
  }

  #sweep(frees = true): void {
    try {
      this.#quarantine.sweep(frees)
    } catch (error) {
      // a ring that cannot be freed: its device is lost, or nobody knows what it holds
      this.#die(error)
    }
    if (!this.#quarantine.empty || this.#sweeper === null) return
    clearInterval(this.#sweeper)
    this.#sweeper = null
  }

  takeMessages(): RankMessage[] {
    const forRun: RankMessage[] = []
    for (let taken = 0; taken < MESSAGES_MAX; taken++) {
      const message = this.#thread.receive()
      if (message === null) break
      if (this.#isForRun(message)) forRun.push(message)
      // a ring and a worker of an earlier run do not wait for the end of this one
      else if (message.type === 'http') this.#quarantine.http(message.run, message)
      else this.#later.push(message)
    }
    return forRun
  }

  #isForRun(message: RankMessage): boolean {
    if (!FOR_RUN.includes(message.type) || !('run' in message)) return false
    return message.run === this.#run?.options.run
  }

  /** Between runs. */
  take(message: RankMessage): void {
    this.#handle(message)
    this.#takeLater()
  }

  #takeLater(): void {
    for (let later = this.#later.shift(); later !== undefined; later = this.#later.shift()) {
      this.#handle(later)
    }
  }

  #handle(message: RankMessage): void {
    switch (message.type) {
      case 'request':
        return this.#answer(message.id, message.request)
      case 'begin':
        if (message.run === this.#run?.options.run) this.#runToEnd(this.#run)
        return
      case 'abort':
        // before it has begun nobody knows of it
        if (message.run === this.#run?.options.run) this.#endRun((run) => run.close())
        return
      case 'http':
        this.#quarantine.http(message.run, message)
        return this.#sweep()
      case 'close':
        return this.#close()
      default: // of a run that has ended
    }
  }

  #runToEnd(run: RankRun | DirectRun): void {
    const thread = this.#thread
    if (thread.drive === undefined) return this.#endRun(() => run.loop())
    thread.drive(run, () => {
      this.#endRun(() => run.close())
      this.#takeLater()
    })
  }

  #endRun(end: (run: RankRun | DirectRun) => void): void {
    const run = this.#run
    if (run === null) return
    try {
      end(run)
    } catch (error) {
      // the ring's fate is unknown: the main thread starts a new Worker
      run.settle()
      this.#die(error)
    } finally {
      this.#run = null
      if (run instanceof DirectRun) this.#collection.restart()
    }
  }

  /** The main thread terminates this Worker. */
  #die(error: unknown): void {
    const { rank } = this.rank
    this.#send({ type: 'dead', failure: { rank, ...CkptError.wrap(error).failure } })
  }

  #answer(id: number, request: RankRequest): void {
    try {
      this.#send({ type: 'answer', id, value: this.#serve(request) })
    } catch (error) {
      const { failure } = CkptError.wrap(error)
      this.#send({ type: 'refusal', id, failure: { rank: this.rank.rank, ...failure } })
    }
  }

  #serve(request: RankRequest): RankAnswers[RankRequest['type']] {
    switch (request.type) {
      case 'memory':
        return this.library.deviceMemory(this.rank.device)
      case 'plan':
      case 'prepare': {
        inject(this.library, 'plan')
        const held = this.#plans.get(request.key)
        if (held !== null || request.input === null) return held?.summary() ?? null
        const made = this.#plans.make(request.key, request.input)
        if (request.type === 'prepare') made.pickleAll()
        return made.summary()
      }
      case 'measure': {
        const flag = new StopFlag(request.stop)
        return { bytesPerSecond: measureH2d(this.library, this.rank.device, () => flag.stopped) }
      }
      case 'rehearse': {
        const flag = new StopFlag(request.stop)
        return { runs: rehearse(this, request.address, () => flag.stopped) }
      }
      case 'group_create':
        return { group: this.library.groupCreate(request.members) }
      case 'group_destroy':
        this.library.groupDestroy(request.group)
        return null
      case 'communicator_id':
        return { id: this.library.communicatorId(request.sharers, request.processes).toHex() }
      case 'communicator_drop':
        this.communicator.drop()
        return null
      case 'open':
        return this.#open(request.options)
      case 'layout':
        if (request.input !== null) this.#directPlans.keep(request.key, request.input)
        return this.#directPlans.holds(request.key)
      case 'open_direct':
        return this.#openDirect(request.options)
      case 'free_buffers':
        freeBuffers(this.library, request.buffers)
        return null
      case 'end_streams':
        return { ended: endStreams(this.library, request.streams, END_MS) }
      case 'engine_map':
        return this.#directPlans.summary(request.engine, request.tensor)
      case 'release_left':
        return { left: this.#releaseLeft(request) }
    }
  }

  /** Who has not come by then, or not left, is told by the keeper of its socket when it does. */
  #releaseLeft(addresses: LeftAddresses): string[] {
    const left = releaseLeft(this.context, addresses)
    for (const { socket, connected } of left) this.quarantine(afterDeadDaemon(socket, connected))
    return left.filter(({ connected }) => connected).map(({ address }) => address)
  }

  #open(options: OpenOptions): OpenAnswer {
    if (this.#run !== null) throw new Error('a run is open')
    const held = this.#plans.get(options.planKey)
    if (held === null) throw new Error('the plan is not held')
    this.#collection.pause()
    const run = new RankRun(this, options, held)
    this.#run = run
    return run.opened
  }

  #openDirect(options: DirectOpenOptions): OpenAnswer {
    if (this.#run !== null) throw new Error('a run is open')
    if (!this.#directPlans.holds(options.layoutKey)) throw new Error('the layout is not held')
    this.#collection.pause()
    this.#run = new DirectRun(this, options, this.#directPlans)
    const { bytesBefore } = this.#run
    return { bytesBefore, bytesAfter: this.#run.bytesInUse(), streams: [] }
  }

  #close(): void {
    if (this.#run !== null) this.#endRun((run) => run.close())
    // first: a ring is not freed while another rank's broadcast waits for this one
    this.communicator.drop()
    this.#quarantine.freeAll()
    this.#directPlans.free(this.library)
    this.remoteSources.close()
    if (this.#sweeper !== null) clearInterval(this.#sweeper)
    this.#collection.pause()
    this.context.close()
    this.library.signalDestroy(this.signal)
    this.#thread.exit()
  }
}

/** What is left of a conversation of a daemon that has died: its ring is gone, and so is the request that nobody reads. */
function afterDeadDaemon(socket: EngineSocket, connected: boolean): KeptRun {
  const worker = { engine: null, dialect: null, everConnected: connected, connected, owes: false }
  const conversation = { socket, ...worker, http: true, answer: { status: 0 } }
  return { run: NO_RUN, ring: null, read: false, settled: true, conversation }
}
