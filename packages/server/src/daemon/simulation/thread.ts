import { CkptError } from '@ckpt/core'
import { clockMs } from '../clock.ts'
import type { OpenOptions, RankMessage, RankReport, RankWorkerStart } from '../rank/messages.ts'
import type { DirectRun } from '../rank/direct-run.ts'
import type { RankRun } from '../rank/run.ts'
import { RankWorker } from '../rank/rank-worker.ts'
import type { RankThread, ThreadEvents } from '../rank/thread.ts'
import type { SimulatedLibrary } from './library.ts'
import type { Random } from './random.ts'
import { Life, type SimulatedTime, type Timer } from './time.ts'
import type { Witness } from './violation.ts'
import type { Wires } from './wires.ts'

/** As `RankWait`: a wake-up that got lost costs no more than this. */
const POLL_MS = 200
const START_MS = 5

/** What a thread runs in. */
export interface ThreadPlace {
  readonly time: SimulatedTime
  readonly random: Random
  readonly witness: Witness
  readonly library: SimulatedLibrary
  readonly wires: Wires
  /** The most that a message to or from it, or waking up, takes. */
  readonly delayMs: number
}

/** The thread of a rank: the daemon's own Worker code, whose waits are events of the simulated time. */
export class SimulatedThread implements RankThread {
  readonly rank: number
  readonly #place: ThreadPlace
  readonly #events: ThreadEvents
  readonly #main: Life
  readonly #life: Life
  readonly #inbox: RankMessage[] = []
  #worker: RankWorker | null = null
  #run: { readonly run: RankRun | DirectRun; readonly end: () => void } | null = null
  #turn: Timer | null = null
  #turnMs = Number.POSITIVE_INFINITY
  #inMs = 0
  #outMs = 0
  /** It is in a native call. */
  #blocked = false
  #stalledUntilMs = 0
  #exited = false
  /** Looks whether a wait for other members is over. */
  #waiting: (() => void) | null = null

  constructor(
    place: ThreadPlace,
    start: Pick<RankWorkerStart, 'rank' | 'spins'>,
    events: ThreadEvents,
  ) {
    this.#place = place
    this.#events = events
    this.rank = start.rank.rank
    this.#main = place.time.life
    this.#life = new Life(this.#main)
    place.time.after(place.random.between(0, START_MS), () => this.#start(start), this.#life)
  }

  get alive(): boolean {
    return this.#life.alive
  }

  #start({ rank, spins }: Pick<RankWorkerStart, 'rank' | 'spins'>): void {
    const { library, wires } = this.#place
    const wake = () => this.#wake()
    const worker = new RankWorker({
      library: library.asLibrary,
      context: wires.context(this.#life, wake),
      rank,
      spins,
      thread: {
        send: (report) => this.#send(report),
        receive: () => this.#inbox.shift() ?? null,
        drive: (run, end) => this.#drive(run, end),
        exit: () => this.terminate(),
      },
    })
    this.#worker = worker
    library.onSignal(worker.signal, wake)
    this.#takeAll()
  }

  #send(report: RankReport): void {
    const { time, random, delayMs } = this.#place
    const type = report.type === 'event' ? report.event.type : report.type
    this.#place.witness.trace(() => `rank ${this.rank} reports ${type}`)
    this.#outMs = Math.max(this.#outMs, time.nowMs + random.between(0, delayMs))
    time.at(this.#outMs, () => this.#events.report(report), this.#main)
  }

  post(message: RankMessage): void {
    const { time, random, delayMs } = this.#place
    this.#inMs = Math.max(this.#inMs, time.nowMs + random.between(0, delayMs))
    const arrive = () => {
      const type = message.type === 'request' ? message.request.type : message.type
      this.#place.witness.trace(() => `rank ${this.rank} gets ${type}`)
      this.#inbox.push(message)
      if (this.#run !== null) this.#wake()
      else this.#takeAll()
    }
    time.at(this.#inMs, arrive, this.#life)
  }

  /** As an event loop between runs. */
  #takeAll(): void {
    const worker = this.#worker
    while (worker !== null && this.#run === null && !this.#blocked && !this.#isStalled) {
      const message = this.#inbox.shift()
      if (message === undefined) return
      const open = meetingOf(message)
      const take = () => {
        this.#place.library.inRun = opens(message)
        worker.take(message)
      }
      if (open === null || this.#isAmong(open)) this.#try(take)
      else this.#meet(open, take)
    }
  }

  #isAmong({ collective, member }: OpenOptions): boolean {
    if (collective?.type !== 'communicator') return true
    return this.#place.library.hasJoined(collective.id, member)
  }

  /** The call in `open` would wait for the others: here the thread does. */
  #meet(options: OpenOptions, open: () => void): void {
    const { library, time } = this.#place
    const { collective, ranks, member, openMs, deadlineMs } = options
    if (collective?.type !== 'communicator' || this.#worker === null) return
    const { signal } = this.#worker
    const { meetings } = library.shared
    this.#blocked = true
    library.signalReset(signal)
    const go = (fails: 'aborted' | 'late' | null) => {
      if (this.#waiting === null) return
      this.#waiting = null
      this.#blocked = false
      timer.cancelled = true
      if (fails !== null) meetings.leave(collective.id)
      library.joinFails = fails
      this.#try(open)
      library.joinFails = null
      this.#takeAll()
    }
    const waitMs = Math.min(deadlineMs - clockMs(), openMs)
    const timer = time.after(waitMs, () => go('late'), this.#life)
    const look = () => {
      if (library.aborts(signal)) go('aborted')
      else if (meetings.complete(collective.id) !== null) go(null)
    }
    this.#waiting = look
    const told = () => time.after(0, look, this.#life)
    meetings.come(collective.id, ranks.length, member, told)
  }

  #drive(run: RankRun | DirectRun, end: () => void): void {
    this.#run = { run, end }
    run.begin()
    this.#plan(this.#place.time.nowMs)
  }

  #wake(): void {
    const { time, random, delayMs } = this.#place
    if (!this.alive) return
    const waiting = this.#waiting
    if (waiting !== null) time.after(0, waiting, this.#life)
    if (this.#run !== null) this.#plan(time.nowMs + random.between(0, delayMs / 4))
  }

  #plan(atMs: number): void {
    const { time } = this.#place
    const dueMs = Math.max(atMs, this.#stalledUntilMs)
    if (this.#turn !== null && this.#turnMs <= dueMs) return
    if (this.#turn !== null) this.#turn.cancelled = true
    this.#turnMs = dueMs
    this.#turn = time.at(dueMs, () => this.#step(), this.#life)
  }

  #step(): void {
    this.#turn = null
    const running = this.#run
    if (running === null) return
    const { nowMs } = this.#place.time
    if (nowMs < this.#stalledUntilMs) return this.#plan(this.#stalledUntilMs)
    this.#try(() => {
      const { library } = this.#place
      library.inRun = true
      const goesOn = running.run.step()
      library.inRun = false
      const { doneMs } = this.#place.time
      if (doneMs > nowMs) this.stall(doneMs - nowMs)
      if (goesOn) return this.#plan(Math.max(nowMs, Math.min(running.run.nextMs, nowMs + POLL_MS)))
      this.#run = null
      running.end()
    })
    if (this.#run === null) this.#takeAll()
  }

  #try(work: () => void): void {
    try {
      work()
    } catch (error) {
      const { code, message } = CkptError.wrap(error)
      this.#place.witness.violated(`rank ${this.rank}: ${message} (${code}) escapes its Worker`)
      this.die(error)
    }
    this.#place.library.inRun = false
  }

  get #isStalled(): boolean {
    return this.#place.time.nowMs < this.#stalledUntilMs
  }

  /** It does nothing for a while, as one that is in a native call. */
  stall(ms: number): void {
    const { time } = this.#place
    this.#stalledUntilMs = Math.max(this.#stalledUntilMs, time.nowMs + ms)
    time.after(ms, () => (this.#run === null ? this.#takeAll() : this.#wake()), this.#life)
  }

  /** What it runs fails so that nothing of it goes on. */
  die(error: unknown): void {
    if (!this.alive) return
    this.#life.end()
    this.#later(() => this.#events.failed(error))
    this.#exit()
  }

  hangUp(): void {}

  terminate(): void {
    this.#life.end()
    this.#exit()
  }

  #exit(): void {
    if (this.#exited) return
    this.#exited = true
    this.#later(() => this.#events.exited())
  }

  #later(told: () => void): void {
    const { time, random, delayMs } = this.#place
    this.#outMs = Math.max(this.#outMs, time.nowMs + random.between(0, delayMs))
    time.at(this.#outMs, told, this.#main)
  }
}

/** Whether a run begins with it to enqueue something. */
function opens(message: RankMessage): boolean {
  return message.type === 'begin' || (message.type === 'request' && message.request.type === 'open')
}

function meetingOf(message: RankMessage): OpenOptions | null {
  if (message.type !== 'request' || message.request.type !== 'open') return null
  const { options } = message.request
  return options.collective?.type === 'communicator' ? options : null
}
