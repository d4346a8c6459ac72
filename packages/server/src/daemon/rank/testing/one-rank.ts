/** For tests: one rank's run in the test's own thread, on the host library, with a worker that does only what it is told to. */
import { type EngineMessage, type Failure, type PlanInput, readEngineMessage } from '@ckpt/core'
import {
  type Library,
  openLibrary,
  type RankInfo,
  SIGNAL_ABORT,
  SIGNAL_USER,
  selectDevices,
  ZmqContext,
  type ZmqSocket,
} from '@ckpt/cuda'
import { TestDir } from '../../registry/testing/fixture.ts'
import { clockMs } from '../../clock.ts'
import { KeptCommunicator } from '../kept-communicator.ts'
import { RemoteSources } from '../remote-sources.ts'
import { PROGRESS_BYTES, PROGRESS_SENT, type RankEvent, type RankMessage } from '../messages.ts'
import { HeldPlan } from '../plans.ts'
import { type KeptRun, Quarantine } from '../quarantine.ts'
import { RankRun } from '../run.ts'
import type { RunHost } from '../run-host.ts'
import { uniformPlan } from '../uniform-plan.ts'

export const RING_BYTES = 2 ** 21
export const RUN = 1
export const ABORTED: Failure = { code: 'aborted', message: 'by the test' }
/** The ring holds four. */
const BUCKET_BYTES = 2 ** 19
const UPDATE_MS = 10_000
const LEAVE_MS = 3000
/** For what is on its way between two sockets of this process. */
const ARRIVE_MS = 10_000
const LOOK_MS = 1
const EMPTY = new Uint8Array(0)

/** `buckets` tensors that fill a bucket each, in one source buffer. */
export function planInput(buckets: number): PlanInput {
  return uniformPlan(buckets, BUCKET_BYTES, RING_BYTES)
}

type MessageType = EngineMessage['type']

export class SteppedWorker {
  /** Types of the messages in the order in which they came. */
  readonly seen: MessageType[] = []
  readonly #socket: ZmqSocket
  /** A REP takes nothing more before it has replied. */
  #owes = false
  #closed = false

  constructor(context: ZmqContext, address: string) {
    this.#socket = context.socket('REP')
    this.#socket.connect(address)
  }

  /** Type of the next message; null: none has come. */
  take(): MessageType | null {
    const frames = this.#closed || this.#owes ? null : this.#socket.recv()
    if (frames === null) return null
    this.#owes = true
    const { type } = readEngineMessage(frames.at(-1)!)
    this.seen.push(type)
    return type
  }

  /** Waits a while for the next message. Blocks. */
  wait(): MessageType | null {
    for (let waitedMs = 0; waitedMs < ARRIVE_MS; waitedMs += LOOK_MS) {
      const type = this.take()
      if (type !== null) return type
      Bun.sleepSync(LOOK_MS)
    }
    return null
  }

  reply(body: Uint8Array = EMPTY): void {
    this.#owes = false
    this.#socket.send([body])
  }

  close(): void {
    if (!this.#closed) this.#socket.close()
    this.#closed = true
  }
}

export interface OneRankOptions {
  readonly buckets: number
  readonly http: boolean
  /** Ranks of the update; the others do nothing. */
  readonly ranks?: number
  /** Gets every native call of the run, and what it returns is what the run gets. */
  readonly around?: (name: string, call: () => unknown, scene: OneRank) => unknown
}

/** Frees what the scene has, and what it has left in quarantine. Throws when a native object is left. */
export function withOneRank(options: OneRankOptions, work: (scene: OneRank) => void): void {
  const scene = new OneRank(options)
  try {
    work(scene)
  } catch (error) {
    scene.close()
    throw error
  }
  const left = scene.close()
  if (left !== 0) throw new Error(`${left} native objects are left`)
}

/** What is said to the run in one turn of its loop. */
export type Play = (scene: OneRank) => RankMessage[]

export class OneRank implements RunHost {
  readonly library: Library
  readonly context = new ZmqContext()
  readonly signal: number
  readonly rank: RankInfo
  readonly spins = false
  readonly communicator: KeptCommunicator
  readonly remoteSources: RemoteSources
  readonly worker: SteppedWorker
  readonly events: RankEvent[] = []
  readonly kept: KeptRun[] = []
  readonly #native: Library
  readonly #options: OneRankOptions
  readonly #dir = new TestDir()
  readonly #progress = new Int32Array(new SharedArrayBuffer(PROGRESS_BYTES))
  readonly #address = `ipc://${this.#dir.path}/engine.sock`
  readonly #group: number
  readonly #buffer: number
  #play: Play = () => []

  constructor(options: OneRankOptions) {
    const ranks = options.ranks ?? 1
    const { library, ranks: infos } = selectDevices('host:1', ranks)
    this.#native = openLibrary(library)
    this.#options = options
    this.rank = infos[0]!
    this.library = this.#watched(options.around)
    this.signal = this.#native.signalCreate()
    this.communicator = new KeptCommunicator(this.#native, this.rank.device)
    this.remoteSources = new RemoteSources(this.#native)
    this.#group = ranks === 1 ? 0 : this.#native.groupCreate(ranks)
    this.#buffer = this.#native.bufferAlloc(options.buckets * BUCKET_BYTES, 0)
    this.worker = new SteppedWorker(this.context, this.#address)
  }

  #watched(around: OneRankOptions['around']): Library {
    if (around === undefined) return this.#native
    return new Proxy(this.#native, {
      get: (native, name: string) => {
        const value = Reflect.get(native, name, native) as unknown
        if (typeof value !== 'function') return value
        return (...args: unknown[]) => around(name, () => value.apply(native, args), this)
      },
    })
  }

  /** Lists that the run says it has sent. */
  get sent(): number {
    return Atomics.load(this.#progress, PROGRESS_SENT)
  }

  has(type: RankEvent['type']): boolean {
    return this.events.some((event) => event.type === type)
  }

  event<T extends RankEvent['type']>(type: T): Extract<RankEvent, { type: T }> {
    const found = this.events.find((event) => event.type === type)
    if (found === undefined) throw new Error(`there was no event ${type}`)
    return found as Extract<RankEvent, { type: T }>
  }

  /** As the main thread does for every rank before it says why. */
  raiseAbort(): void {
    this.#native.signalRaise(this.signal, SIGNAL_ABORT)
  }

  /** Runs to the end. Blocks. */
  run(play: Play): void {
    this.#play = play
    this.open().loop()
  }

  /** What is there before the run begins. */
  open(): RankRun {
    const { buckets, http, ranks = 1 } = this.#options
    return new RankRun(
      this,
      {
        run: RUN,
        planKey: 'plan',
        ranks: Array.from({ length: ranks }, (_, rank) => rank),
        member: 0,
        collective: this.#group === 0 ? null : { type: 'copies', group: this.#group },
        address: this.#address,
        http,
        engine: null,
        dialect: null,
        buffers: [Uint32Array.of(this.#buffer)],
        remotes: [null],
        readings: [null],
        openMs: UPDATE_MS,
        deadlineMs: clockMs() + UPDATE_MS,
        progress: this.#progress.buffer as SharedArrayBuffer,
      },
      new HeldPlan(planInput(buckets)),
    )
  }

  /** Returns how many native objects are left of this process. */
  close(): number {
    this.worker.close()
    const nobody = () => {}
    const quarantine = new Quarantine({
      settled: nobody,
      freed: nobody,
      kept: nobody,
      left: nobody,
    })
    for (const kept of this.kept) quarantine.keep(kept)
    quarantine.freeAll()
    this.context.close()
    if (this.#group !== 0) this.#native.groupDestroy(this.#group)
    this.#native.bufferFree(this.#buffer)
    this.#native.signalDestroy(this.signal)
    this.#dir.remove()
    return this.#native.liveObjects()
  }

  report(_run: number, event: RankEvent): void {
    this.events.push(event)
  }

  takeMessages(): RankMessage[] {
    // no turn sleeps: the worker is stepped in this thread
    this.#native.signalRaise(this.signal, SIGNAL_USER)
    Bun.sleepSync(LOOK_MS)
    return this.#play(this)
  }

  quarantine(kept: KeptRun): void {
    this.kept.push(kept)
  }

  openedAnew(): void {}

  tend(): void {}
}

export function abort(): RankMessage {
  return { type: 'abort', run: RUN, failure: ABORTED, leaveMs: LEAVE_MS }
}

export function http(status: number): RankMessage {
  return { type: 'http', run: RUN, ok: status === 200, status, message: 'words of the answer' }
}

/** An update in good order of an engine that speaks D4: its worker replies to everything and leaves when it is told to. */
export function goodOrder(): Play {
  const said = new Set<string>()
  let nones = 0
  const once = (what: string, message: RankMessage): RankMessage[] => {
    if (said.has(what)) return []
    said.add(what)
    return [message]
  }
  return (scene) => {
    const type = scene.worker.take()
    const messages: RankMessage[] = []
    if (scene.has('opened')) messages.push(...once('announce', { type: 'announce', run: RUN }))
    if (scene.has('transferred')) messages.push(...once('release', { type: 'release', run: RUN }))
    if (type === 'error') {
      scene.worker.close()
      messages.push(...once('http', http(500)))
    } else if (type !== null) {
      scene.worker.reply()
      if (type === 'none' && ++nones === 2) {
        scene.worker.close()
        messages.push(...once('http', http(200)))
      }
    }
    return messages
  }
}
