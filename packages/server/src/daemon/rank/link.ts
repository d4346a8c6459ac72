import { rmSync } from 'node:fs'
import { CkptError, type Failure, type FetchPlan } from '@ckpt/core'
import {
  type Handle,
  type Library,
  NativeError,
  SIGNAL_ABORT,
  SIGNAL_HTTP,
  SIGNAL_USER,
  STATUS_ERR_HANDLE,
} from '@ckpt/cuda'
import { log } from '../log.ts'
import type { LibraryOptions, RankInfo } from '../types.ts'
import { BOARD_BYTES } from './board.ts'
import { type RankHandle, type RankListener, tellGone } from './handle.ts'
import type {
  MemoryAnswer,
  OpenAnswer,
  RankAnswers,
  RankEvent,
  RankMessage,
  RankReport,
  RankRequest,
  ReadHandles,
} from './messages.ts'
import { endReads } from './remote-sources.ts'
import { RunStreams } from './run-streams.ts'
import { type RankThread, type StartThread, startThread, type ThreadEvents } from './thread.ts'

const START_MS = 30_000
/** A Worker that is asked to close may have 500 ms of messages on their way, see `engine-socket.ts`. */
const CLOSE_MS = 3000
const NO_READS: ReadHandles = { p2p: 0, peers: [], remotes: [] }
const IPC = 'ipc://'

interface Waiting {
  resolve(value: unknown): void
  reject(error: CkptError): void
}

interface RunningHere {
  readonly run: number
  readonly ringBytes: number
  readonly listener: RankListener
}

/** Is told what concerns the daemon also while no update uses the rank. */
export interface RankWatcher {
  /** What was asked of the Worker failed, or its part of an update, of which that is told first. */
  failed(failure: Failure): void
  /** Why the Worker died. */
  dead(failure: Failure): void
  /** No worker of an engine can wait at this address any more. */
  left(address: string): void
}

const NOBODY: RankWatcher = { failed: () => {}, dead: () => {}, left: () => {} }

/** The main thread's end of one rank Worker of this daemon. */
export class RankLink implements RankHandle {
  readonly rank: RankInfo
  readonly node = 0
  readonly board = new SharedArrayBuffer(BOARD_BYTES)
  /** Bytes of rings in quarantine by run. */
  readonly quarantined = new Map<number, number>()
  /** Free and total bytes of the device when the Worker said them last. */
  memory: MemoryAnswer = { freeBytes: 0, totalBytes: 0 }
  /** Addresses at which a worker of an earlier run may still wait. */
  readonly kept = new Set<string>()
  readonly #library: Library
  readonly #thread: RankThread
  readonly #waiting = new Map<number, Waiting>()
  readonly #settling = new Map<number, PromiseWithResolvers<void>>()
  readonly #streams: RunStreams
  readonly #exited: Promise<void>
  #signal = 0
  /** Its Worker's, which outlives it. */
  #communicator: Handle = 0
  #reads: ReadHandles = NO_READS
  #pinned: readonly Handle[] = []
  #nextId = 0
  /** That its Worker has bound last. */
  #address: string | null = null
  #run: RunningHere | null = null
  #dead: Failure | null = null
  #ready: Waiting | null = null
  #watcher: RankWatcher = NOBODY

  /** Starts the Worker; rejects with what the native library says, such as `native_missing`. */
  static async start(
    options: LibraryOptions,
    library: Library,
    rank: RankInfo,
    spins: boolean,
    watcher: RankWatcher = NOBODY,
    starts: StartThread = startThread,
  ): Promise<RankLink> {
    const link = new RankLink(library, rank, (events) =>
      starts({ library: options, rank, spins }, events),
    )
    link.#watcher = watcher
    const timer = setTimeout(() => link.#die('the rank Worker did not start'), START_MS)
    try {
      await new Promise((resolve, reject) => {
        link.#ready = { resolve, reject }
      })
    } finally {
      clearTimeout(timer)
    }
    return link
  }

  private constructor(
    library: Library,
    rank: RankInfo,
    starts: (events: ThreadEvents) => RankThread,
  ) {
    this.rank = rank
    this.#library = library
    this.#streams = new RunStreams(library)
    const exited = Promise.withResolvers<void>()
    this.#exited = exited.promise
    this.#thread = starts({
      report: (report) => this.#take(report),
      failed: (error) => this.#die(`the rank Worker failed: ${CkptError.wrap(error).message}`),
      exited: () => {
        this.#die('the rank Worker has ended')
        this.#thread.hangUp()
        exited.resolve()
      },
    })
  }

  get dead(): Failure | null {
    return this.#dead
  }

  /** Of a Worker that has died they are never freed. */
  get quarantinedBytes(): number {
    let bytes = 0
    for (const one of this.quarantined.values()) bytes += one
    return bytes
  }

  get busy(): boolean {
    return this.#run !== null
  }

  get owes(): boolean {
    return this.#waiting.size > 0
  }

  /** Its Worker has not come back out of something for too long: it is replaced when the rank is used. */
  giveUp(ms: number): void {
    this.#die(`the rank Worker has not answered for ${ms} ms`)
  }

  request<T extends RankRequest['type']>(
    request: Extract<RankRequest, { type: T }>,
  ): Promise<RankAnswers[T]> {
    if (this.#dead !== null) return Promise.reject(CkptError.from(this.#dead))
    const id = this.#nextId++
    const asked: RankRequest = request
    if ('options' in asked) this.#address = asked.options.address
    const answer = new Promise<RankAnswers[T]>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (value: unknown) => void, reject })
      this.#post({ type: 'request', id, request }, 0)
    })
    if (asked.type === 'open') this.#keepStreams(asked.options.run, answer)
    return answer
  }

  #keepStreams(run: number, answer: Promise<unknown>): void {
    const keep = (opened: unknown) => this.#streams.opened(run, (opened as OpenAnswer).streams)
    answer.then(keep, () => {})
  }

  async readMemory(): Promise<MemoryAnswer> {
    this.memory = await this.request({ type: 'memory' })
    return this.memory
  }

  listen(run: number, ringBytes: number, listener: RankListener): void {
    this.#run = { run, ringBytes, listener }
  }

  unlisten(): void {
    this.#run = null
  }

  begin(run: number): void {
    this.#post({ type: 'begin', run }, SIGNAL_USER)
  }

  announce(run: number): void {
    this.#post({ type: 'announce', run }, SIGNAL_USER)
  }

  copy(run: number, fetch: FetchPlan | null, shares: boolean): void {
    this.#post({ type: 'copy', run, fetch, shares }, SIGNAL_USER)
  }

  leave(run: number, reason: string, leaveMs: number): void {
    this.#post({ type: 'leave', run, reason, leaveMs }, SIGNAL_USER)
  }

  release(run: number): void {
    this.#post({ type: 'release', run }, SIGNAL_USER)
  }

  http(run: number, result: { ok: boolean; status: number; message: string }): void {
    const { ok, status, message } = result
    this.#post({ type: 'http', run, ok, status, message }, SIGNAL_HTTP)
  }

  /** 0: it has not started. */
  get signal(): Handle {
    return this.#signal
  }

  raiseAbort(): void {
    if (this.#dead === null) this.#library.signalRaise(this.#signal, SIGNAL_ABORT)
  }

  abort(run: number, failure: Failure, leaveMs: number): void {
    this.#post({ type: 'abort', run, failure, leaveMs }, SIGNAL_ABORT)
  }

  /**
   * Of a Worker that has died nobody can tell: then when its thread has ended, which nothing in a native call survives, and what its
   * run had enqueued is over.
   */
  settled(run: number): Promise<void> {
    if (this.#dead !== null) return this.#exited.then(() => this.#streams.idle(run))
    const waiting = this.#settling.get(run) ?? Promise.withResolvers<void>()
    this.#settling.set(run, waiting)
    return waiting.promise
  }

  /** Resolves when no copy of an earlier direct update writes an engine's memory any more. */
  quiet(): Promise<void> {
    return this.#streams.quiet()
  }

  /**
   * This Worker has died, and may never come back out of a native call: the one in its place ends what its runs write engines' memory
   * with, so that they write nothing more if it does.
   */
  endCopies(fresh: RankLink): void {
    this.#streams.endWriting(async (streams) => {
      return (await fresh.request({ type: 'end_streams', streams })).ended
    })
  }

  /** As {@link RankLink.endCopies}: what its thread, when that has ended, has left of pinned memory, which copies hold that go on. */
  async freePinned(fresh: RankLink): Promise<void> {
    await this.#exited
    const buffers = this.#pinned
    this.#pinned = []
    if (buffers.length === 0) return
    try {
      await fresh.request({ type: 'free_buffers', buffers })
    } catch {
      // then the one in its place has more to free
      if (fresh.#dead !== null) fresh.#pinned = [...fresh.#pinned, ...buffers]
    }
  }

  /** Ends the Worker; one that does not answer is terminated. */
  async close(): Promise<void> {
    // an idle Worker needs no signal, and destroys it when it reads this: from here on nothing may raise it
    if (this.#dead === null) this.#thread.post({ type: 'close' })
    this.#dieOf({ code: 'shutting_down', message: 'the daemon is closing', rank: this.rank.rank })
    const late = Bun.sleep(CLOSE_MS).then(() => 'late' as const)
    if ((await Promise.race([this.#exited, late])) === 'late') {
      this.#terminate()
    }
    this.#thread.hangUp()
  }

  #post(message: RankMessage, bits: number): void {
    if (this.#dead !== null) return
    this.#thread.post(message)
    if (this.#signal !== 0) this.#library.signalRaise(this.#signal, bits)
  }

  #take(report: RankReport): void {
    switch (report.type) {
      case 'ready':
        this.#signal = report.signal
        this.memory = report.memory
        return this.#ready?.resolve(null)
      case 'dead':
        this.#dieOf(report.failure)
        return this.#terminate()
      case 'answer':
        this.#waiting.get(report.id)?.resolve(report.value)
        this.#waiting.delete(report.id)
        return
      case 'refusal':
        this.#waiting.get(report.id)?.reject(CkptError.from(report.failure))
        this.#waiting.delete(report.id)
        return this.#watcher.failed(report.failure)
      case 'settled':
        this.#settling.get(report.run)?.resolve()
        this.#settling.delete(report.run)
        this.#streams.settled(report.run)
        return
      case 'ring_freed':
        this.quarantined.delete(report.run)
        return
      case 'communicator':
        this.#communicator = report.communicator
        return
      case 'reads':
        this.#reads = report.handles
        return
      case 'pinned':
        this.#pinned = report.buffers
        return
      case 'kept':
        this.kept.add(report.address)
        return
      case 'left':
        this.kept.delete(report.address)
        return this.#watcher.left(report.address)
      case 'event':
        return this.#takeEvent(report.run, report.event)
    }
  }

  #takeEvent(run: number, event: RankEvent): void {
    this.#streams.take(run, event)
    if (event.type === 'closed') {
      if (event.quarantinedBytes > 0) this.quarantined.set(run, event.quarantinedBytes)
      if (!event.settled) this.#streams.goOn(run, this.settled(run))
      const { totalBytes } = this.memory
      const used = event.bytesAfter
      if (used !== null) this.memory = { totalBytes, freeBytes: totalBytes - used }
    }
    const current = this.#run
    if (current?.run === run) {
      if (event.type === 'closed') this.#run = null
      current.listener(event, this.rank)
    }
    if (event.type === 'failed') this.#watcher.failed(event.failure)
  }

  #die(message: string): void {
    this.#dieOf({ code: 'rank_failed', message, rank: this.rank.rank })
    this.#terminate()
  }

  /** Nobody listens there any more. A worker that is connected does not need the name, nor does whoever binds it anew. */
  #removeSocket(): void {
    const address = this.#run === null ? null : this.#address
    if (address?.startsWith(IPC)) rmSync(address.slice(IPC.length), { force: true })
  }

  /** What outlives a Worker that has died. Other ranks' devices may wait for the first; each takes half a second. */
  #endShared(): void {
    const communicator = this.#communicator
    const reads = this.#reads
    this.#communicator = 0
    this.#reads = NO_READS
    if (communicator !== 0) this.#end(() => this.#library.communicatorDestroy(communicator))
    this.#end(() => endReads(this.#library, reads))
  }

  #end(end: () => void): void {
    try {
      end()
    } catch (error) {
      // its Worker could still do it
      if (error instanceof NativeError && error.nativeStatus === STATUS_ERR_HANDLE) return
      const { message } = CkptError.wrap(error)
      log.warn('rank {rank}: {message}', { rank: this.rank.rank, message })
    }
  }

  #terminate(): void {
    this.#thread.terminate()
  }

  #dieOf(failure: Failure): void {
    if (this.#dead !== null) return
    this.#dead = failure
    const error = CkptError.from(failure)
    this.#ready?.reject(error)
    for (const waiting of this.#waiting.values()) waiting.reject(error)
    this.#waiting.clear()
    for (const [run, { resolve }] of this.#settling) {
      void this.#exited.then(() => this.#streams.idle(run)).then(resolve)
    }
    this.#settling.clear()
    void this.#exited.then(() => this.#endShared())
    this.#removeSocket()
    const current = this.#run
    this.#run = null
    if (current !== null) {
      const quarantinedBytes = current.ringBytes
      this.quarantined.set(current.run, quarantinedBytes)
      this.#streams.goOn(current.run, this.settled(current.run))
      // nobody can tell any more: the checkpoint stays until the thread has ended
      tellGone(current.listener, this.rank, failure, { quarantinedBytes, settled: false })
    }
    this.#watcher.dead(failure)
  }
}
