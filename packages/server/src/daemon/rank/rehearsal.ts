import { CkptError, type Failure } from '@ckpt/core'
import { pickleNone } from '@ckpt/core/engine/pickle-writer'
import { type Handle, type Library, type ZmqContext, type ZmqSocket, zmqPoll } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import type { RankInfo } from '../types.ts'
import type { KeptCommunicator } from './kept-communicator.ts'
import type { RemoteSources } from './remote-sources.ts'
import {
  NO_RUN,
  PROGRESS_BYTES,
  PROGRESS_SENT,
  type RankEvent,
  type RankMessage,
} from './messages.ts'
import { HeldPlan } from './plans.ts'
import type { KeptRun } from './quarantine.ts'
import { COPIED_BYTES, rehearseCopies } from './rehearse-copies.ts'
import { RankRun } from './run.ts'
import type { RunHost } from './run-host.ts'
import { uniformPlan } from './uniform-plan.ts'

/** After so many buckets the runtime has compiled what an update runs: a list then takes a third of the time of the first ones. */
const RUNS = 10
const BUCKETS = 96
const BUCKET_BYTES = 64 * 2 ** 10
/** A third of the buckets: most copies wait for an acknowledgement. */
const RING_BYTES = 2 * 2 ** 20
const LIMIT_MS = 500
const ARRIVE_MS = 5
/** An update that comes waits no longer until it is seen. */
const TEND_MS = 5
const STOPPED: Failure = { code: 'aborted', message: 'there is something better to do' }
const SUCCESS = new Uint8Array(0)
const NONE = Buffer.from(pickleNone())

type RehearsalHost = Pick<
  RunHost,
  'library' | 'context' | 'rank' | 'communicator' | 'remoteSources' | 'report' | 'quarantine'
>

/**
 * Small updates of made-up bytes on this rank's device, with a worker in this thread, so that the first real one finds its code
 * compiled. They take some 10 MiB of pinned and device memory for a quarter of a second. Blocks.
 *
 * Nothing is left, unless a copy still writes the ring of one that has failed: then that is in quarantine, as {@link NO_RUN}.
 *
 * @param host of the real updates, with the quarantine
 * @param address of an engine socket that nobody else uses
 * @param stopped asked every few milliseconds
 * @returns how many ran; fewer than ten when `stopped`
 * @throws CkptError of what one has failed
 */
export function rehearse(host: RehearsalHost, address: string, stopped: () => boolean): number {
  const { library } = host
  using stack = new DisposableStack()
  const buffer = library.bufferAlloc(Math.max(BUCKETS * BUCKET_BYTES, COPIED_BYTES), 0)
  stack.defer(() => library.bufferFree(buffer))
  const signal = library.signalCreate()
  stack.defer(() => library.signalDestroy(signal))
  const held = new HeldPlan(uniformPlan(BUCKETS, BUCKET_BYTES, RING_BYTES))
  held.pickleAll()
  for (let run = 0; run < RUNS; run++) {
    if (stopped()) return run
    if (!new Rehearsal(host, signal, stopped).run(held, buffer, address)) return run
  }
  rehearseCopies(library, host.rank.device, buffer, RUNS, stopped)
  // of rings: these may have been stopped
  return RUNS
}

/** One of them. Its worker speaks D4 and acts in the turns of the run's loop. */
class Rehearsal implements RunHost {
  readonly library: Library
  readonly context: ZmqContext
  readonly rank: RankInfo
  readonly communicator: KeptCommunicator
  readonly remoteSources: RemoteSources
  readonly signal: Handle
  readonly spins = false
  readonly tendMs = TEND_MS
  readonly #host: RehearsalHost
  readonly #stopped: () => boolean
  readonly #progress = new Int32Array(new SharedArrayBuffer(PROGRESS_BYTES))
  readonly #worker: ZmqSocket
  readonly #messages: RankMessage[] = []
  #connected = false
  #replies = 0
  #nones = 0
  #finished = false
  #failure: Failure | null = null
  /** It was told to end at once. */
  #ended = false
  #ringKept = false

  constructor(host: RehearsalHost, signal: Handle, stopped: () => boolean) {
    this.library = host.library
    this.context = host.context
    this.rank = { ...host.rank, rank: 0 }
    this.communicator = host.communicator
    this.remoteSources = host.remoteSources
    this.signal = signal
    this.#host = host
    this.#stopped = stopped
    this.#worker = host.context.socket('REP')
  }

  /** Whether it went through; not when it was stopped. @throws CkptError of what it has failed */
  run(held: HeldPlan, buffer: Handle, address: string): boolean {
    try {
      const run = new RankRun(
        this,
        {
          run: NO_RUN,
          planKey: '',
          ranks: [0],
          member: 0,
          collective: null,
          address,
          http: false,
          engine: null,
          dialect: null,
          buffers: [Uint32Array.of(buffer)],
          remotes: [null],
          readings: [null],
          openMs: LIMIT_MS,
          deadlineMs: clockMs() + LIMIT_MS,
          progress: this.#progress.buffer as SharedArrayBuffer,
        },
        held,
      )
      this.#worker.connect(address)
      this.#connected = true
      run.loop()
    } finally {
      this.#worker.close()
    }
    if (this.#failure !== null) throw CkptError.from(this.#failure)
    return this.#finished
  }

  /** The worker is nobody's, so it is not waited for. */
  #end(failure: Failure): void {
    if (this.#ended) return
    this.#ended = true
    this.#messages.push({ type: 'abort', run: NO_RUN, failure, leaveMs: 0 })
  }

  tend(): void {
    if (this.#stopped()) this.#end(STOPPED)
    else if (this.#connected) this.#tendWorker()
  }

  #tendWorker(): void {
    // a list that was sent is here in some ten microseconds; the handle and the end may take their time
    const lists = Atomics.load(this.#progress, PROGRESS_SENT)
    const owed = lists > this.#replies - 1
    if (!zmqPoll([this.#worker], owed ? ARRIVE_MS : 0)[0]) return
    const body = this.#worker.recv()?.at(-1)
    if (body === undefined) return
    this.#worker.send([SUCCESS])
    this.#replies++
    if (!NONE.equals(body) || ++this.#nones < 2) return
    this.#connected = false
    this.#worker.close()
  }

  takeMessages(): RankMessage[] {
    return this.#messages.splice(0)
  }

  report(run: number, event: RankEvent): void {
    if (event.type === 'transferred') this.#messages.push({ type: 'release', run: NO_RUN })
    if (event.type === 'finished') this.#finished = true
    if (event.type === 'failed') {
      this.#failure = event.failure
      this.#end(event.failure)
    }
    // its bytes are counted until they are freed
    if (event.type === 'closed' && this.#ringKept) this.#host.report(run, event)
  }

  /** Its worker has never mapped the ring. */
  quarantine({ conversation, ring, ...kept }: KeptRun): void {
    conversation?.socket.close()
    if (ring === null) return
    if (kept.settled) return ring.free()
    this.#ringKept = true
    this.#host.quarantine({ ...kept, ring, read: false, conversation: null })
  }

  openedAnew(): void {}
}
