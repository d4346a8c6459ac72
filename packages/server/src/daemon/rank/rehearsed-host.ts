import { CkptError, type Failure } from '@ckpt/core'
import type { Handle, Library, ZmqContext, ZmqSocket } from '@ckpt/cuda'
import type { RankInfo } from '../types.ts'
import type { KeptCommunicator } from './kept-communicator.ts'
import { NO_RUN, type RankEvent, type RankMessage } from './messages.ts'
import type { KeptRun } from './quarantine.ts'
import type { RemoteSources } from './remote-sources.ts'
import type { RunHost } from './run-host.ts'

/** An update that comes waits no longer until it is seen. */
const TEND_MS = 5
const STOPPED: Failure = { code: 'aborted', message: 'there is something better to do' }

/** What rehearsals have of the rank that they are for. */
export type RehearsalHost = Pick<
  RunHost,
  'library' | 'context' | 'rank' | 'communicator' | 'remoteSources' | 'report' | 'quarantine'
>

/** Some of one kind. */
export interface Rehearsals {
  readonly host: RehearsalHost
  readonly signal: Handle
  /** Asked every few milliseconds. */
  readonly stopped: () => boolean
  /** Of an engine socket that nobody else uses. */
  readonly address: string
  readonly runs: number
}

/**
 * What one rehearsed run has in place of the rank's thread: the main thread's part is played here, and the engine's worker is a
 * socket of this thread that acts in the turns of the run's loop.
 */
export abstract class RehearsedHost implements RunHost {
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
  readonly #worker: ZmqSocket
  readonly #messages: RankMessage[] = []
  #connected = false
  #finished = false
  #failure: Failure | null = null
  /** It was told to end at once. */
  #ended = false
  #memoryKept = false

  /** @param stopped asked every few milliseconds */
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

  /**
   * Whether it went through; not when it was stopped. Blocks.
   *
   * @param open makes the run, which binds `address`
   * @throws CkptError of what it has failed
   */
  protected play(open: () => { loop(): void }, address: string): boolean {
    try {
      const run = open()
      this.#worker.connect(address)
      this.#connected = true
      run.loop()
    } finally {
      this.#worker.close()
    }
    if (this.#failure !== null) throw CkptError.from(this.#failure)
    return this.#finished
  }

  /** The worker's turn. */
  protected abstract work(worker: ZmqSocket): void
  /** What the main thread says to what the run tells it. */
  protected abstract heard(event: RankEvent): void

  protected say(message: RankMessage): void {
    this.#messages.push(message)
  }

  /** The worker has all. */
  protected leave(): void {
    this.#connected = false
    this.#worker.close()
  }

  /** The worker is nobody's, so it is not waited for. */
  #end(failure: Failure): void {
    if (this.#ended) return
    this.#ended = true
    this.say({ type: 'abort', run: NO_RUN, failure, leaveMs: 0 })
  }

  tend(): void {
    if (this.#stopped()) this.#end(STOPPED)
    else if (this.#connected) this.work(this.#worker)
  }

  takeMessages(): RankMessage[] {
    return this.#messages.splice(0)
  }

  report(_run: number, event: RankEvent): void {
    this.heard(event)
    if (event.type === 'finished') this.#finished = true
    if (event.type === 'failed') {
      this.#failure = event.failure
      this.#end(event.failure)
    }
    // its bytes are counted until they are freed
    if (event.type === 'closed' && this.#memoryKept) this.#host.report(NO_RUN, event)
  }

  /** Its worker has never mapped the memory. */
  quarantine({ conversation, ring, ...kept }: KeptRun): void {
    conversation?.socket.close()
    if (ring === null) return
    if (kept.settled) return ring.free()
    this.#memoryKept = true
    this.#host.quarantine({ ...kept, ring, read: false, conversation: null })
  }

  openedAnew(): void {}
}
