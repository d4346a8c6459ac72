import { randomUUID } from 'node:crypto'
import type {
  EngineTarget,
  GatherAnswer,
  RegisterAnswer,
  RegisterRequest,
  UpdateReport,
  UpdateRequest,
  UpdateState,
} from '@ckpt/core'
import { CkptError } from '@ckpt/core'
import { type DaemonClient, SilenceError } from './client.ts'
import { waitForEngine, whereOf } from './engine-ready.ts'
import { CommandError } from './exit.ts'
import { formatBytes, formatRate, formatSeconds } from './format.ts'
import type { Progress } from './progress.ts'
import type { OuterStage } from './stage-table.ts'
import type { VerifiedEngine } from './verify-update.ts'

/** One update of the job: the engines, and the ranks when not all of them. */
export interface UpdateStep {
  readonly engines: readonly EngineTarget[]
  readonly ranks?: readonly number[]
}

export interface UpdateJob {
  readonly name: string
  /** Null: what the daemon holds under the name is used. */
  readonly files: RegisterRequest | null
  readonly steps: readonly UpdateStep[]
  readonly request: UpdateRequest
  readonly readyTimeoutMs: number
  /** Engines that must be ready first: of the updates', those that are reached from this command's host. */
  readonly waitFor: readonly EngineTarget[]
  /** Pause between the updates of one job: checkpoint-engine's client lets a process group end. */
  readonly pauseMs: number
}

export interface JobSeconds {
  /** From the command's start to the engines' end: what a trainer waits for. */
  total: number
  register: number
  ready: number
  gather: number
  update: number
}

export interface JobResult {
  readonly seconds: JobSeconds
  readonly registered: RegisterAnswer | null
  readonly gathered: GatherAnswer
  readonly updates: readonly UpdateReport[]
  /** Only where that was asked for. */
  verified?: readonly VerifiedEngine[]
}

/** Ends the job from outside; the running update is aborted and waited for. */
export interface Interrupt {
  readonly signal: AbortSignal
}

/** What registering has done beside what was asked. */
export function registerNotes(registered: RegisterAnswer | null): string[] {
  if (registered === null) return []
  const { evicted = [], previous_dropped, reads = [], notes = [] } = registered
  const direct = reads.filter(({ how }) => how === 'direct')
  return [
    ...(previous_dropped ? ['host memory does not hold two versions: the old one went first'] : []),
    ...evicted.map((name) => `checkpoint '${name}' was dropped to make room`),
    ...direct.map(
      ({ files, bytes, reason }) =>
        `read past the page cache (O_DIRECT): ${reason} (${formatBytes(bytes)} of ${files} ${files === 1 ? 'file' : 'files'})`,
    ),
    ...notes,
  ]
}

/** The stage of registering: with files that are read while they are sent it moves no bytes of its own. */
export function registerStage(registered: RegisterAnswer, seconds: number): OuterStage {
  return { name: 'register', seconds, bytes: registered.reading ? 0 : registered.bytes }
}

/**
 * Register, wait for the engines, gather, update: the job of `ckpt update`, against a daemon's routes.
 *
 * @throws CkptError or CommandError; `aborted` after an interrupt
 */
export async function runUpdateJob(
  client: DaemonClient,
  job: UpdateJob,
  progress: Progress,
  interrupt: Interrupt,
): Promise<JobResult> {
  const clock = stopwatch()
  const registered =
    job.files === null
      ? null
      : await orInterrupt(interrupt, register(client, job.name, job.files, progress))
  const registerSeconds = clock.lap()
  if (job.waitFor.length > 0) await waitForEngines(job, progress, interrupt)
  const readySeconds = clock.lap()
  const gathered = await orInterrupt(interrupt, client.gather(job.name))
  const gatherSeconds = clock.lap()
  progress.done('gather', `${formatSeconds(gatherSeconds)}  digest ${gathered.digest.slice(0, 12)}`)
  const updates: UpdateReport[] = []
  for (const [index, step] of job.steps.entries()) {
    if (index > 0) await Bun.sleep(job.pauseMs)
    throwIfInterrupted(interrupt)
    const request = { ...job.request, engines: [...step.engines], ranks: [...(step.ranks ?? [])] }
    updates.push(await followUpdate(client, job.name, request, progress, interrupt))
  }
  const seconds: JobSeconds = {
    total: clock.total(),
    register: registerSeconds,
    ready: readySeconds,
    gather: gatherSeconds,
    update: clock.lap(),
  }
  return { seconds, registered, gathered, updates }
}

function stopwatch() {
  const startMs = performance.now()
  let lapMs = startMs
  return {
    lap(): number {
      const beforeMs = lapMs
      lapMs = performance.now()
      return (lapMs - beforeMs) / 1000
    },
    total: (): number => (performance.now() - startMs) / 1000,
  }
}

async function register(
  client: DaemonClient,
  name: string,
  files: RegisterRequest,
  progress: Progress,
): Promise<RegisterAnswer> {
  const work = client.register(name, files)
  return await loaded(progress, 'register', `${files.files.length} files`, work)
}

/**
 * A checkpoint that comes into the daemon's memory, as a stage that is shown while it does.
 *
 * @param what comes, in words
 */
export async function loaded(
  progress: Progress,
  stage: string,
  what: string,
  work: Promise<RegisterAnswer>,
): Promise<RegisterAnswer> {
  const startMs = performance.now()
  const show = () =>
    progress.show(stage, `${what}, ${formatSeconds((performance.now() - startMs) / 1000)}`)
  show()
  const timer = setInterval(show, 200)
  try {
    const { bytes, seconds, reading } = await work
    const how = reading ? 'read while it is sent' : `${formatRate(bytes, seconds)} GB/s`
    progress.done(stage, `${formatSeconds(seconds)}  ${formatBytes(bytes)}  ${how}`)
    return await work
  } finally {
    clearInterval(timer)
  }
}

async function waitForEngines(
  job: UpdateJob,
  progress: Progress,
  interrupt: Interrupt,
): Promise<void> {
  const engines = new Map(job.waitFor.map((engine) => [engine.url, engine]))
  const most = job.readyTimeoutMs === 0 ? '' : ` (at most ${job.readyTimeoutMs / 1000} s)`
  const startMs = performance.now()
  await Promise.all(
    [...engines.values()].map((engine) =>
      waitForEngine(engine, {
        timeoutMs: job.readyTimeoutMs,
        signal: interrupt.signal,
        onWait: (reason, waitedMs) => {
          const waited = formatSeconds(waitedMs / 1000)
          const where = whereOf(engine)
          progress.show('ready', `waiting for ${where}, ${waited}: ${reason}`)
          progress.waits(engine.url, `waiting for the engine at ${where}${most}: ${reason}`)
        },
      }),
    ),
  )
  progress.done('ready', formatSeconds((performance.now() - startMs) / 1000))
}

/**
 * Starts an update and follows it to its end. An interrupt aborts it in the daemon and still waits for the end, because only
 * then are the engines released.
 */
export async function followUpdate(
  client: DaemonClient,
  name: string,
  request: UpdateRequest,
  progress: Progress,
  interrupt: Interrupt,
): Promise<UpdateReport> {
  const id = request.update_id ?? `update-${randomUUID()}`
  await client.startUpdate(name, { ...request, update_id: id })
  const abort = () => {
    progress.show('abort', `ending update ${id}`)
    client.abort(id, 'interrupted by its client').catch(() => {})
  }
  interrupt.signal.addEventListener('abort', abort)
  if (interrupt.signal.aborted) abort()
  try {
    const state = await followToEnd(client, id, progress)
    if (state.report !== undefined && state.state === 'done') {
      progress.done('update', updateLine(state.report))
      return state.report
    }
    const failure =
      state.error ?? new CkptError('internal', `update ${id} failed without a reason`).failure
    throw new CommandError(failure, { update: state })
  } finally {
    progress.clear()
    interrupt.signal.removeEventListener('abort', abort)
  }
}

/**
 * Reads the events; where their connection ends or falls silent before the update ends, asks for its state and connects
 * again.
 */
async function followToEnd(
  client: DaemonClient,
  id: string,
  progress: Progress,
): Promise<UpdateState> {
  for (;;) {
    try {
      for await (const event of client.updateEvents(id)) {
        showUpdate(progress, event)
        if (event.event === 'done' || event.event === 'failed') break
      }
    } catch (error) {
      // a broken stream is no reason to give up; a daemon that is gone shows in the next request
      if (error instanceof CkptError) throw error
      if (error instanceof SilenceError) {
        progress.note(`${error.failure.message}; asking for the state of update ${id}`)
      }
    }
    const state = await stateNow(client, id)
    if (state.state === 'done' || state.state === 'failed') return state
    await Bun.sleep(200)
  }
}

async function stateNow(client: DaemonClient, id: string): Promise<UpdateState> {
  try {
    return await client.updateState(id)
  } catch (error) {
    if (!(error instanceof CommandError)) throw error
    const { code, message } = error.failure
    if (code !== 'daemon_unreachable') throw error
    const what =
      error instanceof SilenceError
        ? `update ${id} may still be running there`
        : `the daemon ended while update ${id} ran, and an engine may hold a part of it: update again when a daemon runs`
    throw new CommandError({ code, message: `${message}; ${what}` })
  }
}

function showUpdate(progress: Progress, state: UpdateState): void {
  if (state.state === 'queued') return progress.show('update', 'waiting for its turn')
  const part = state.bytes > 0 ? ` ${Math.floor((100 * state.bytes_done) / state.bytes)} %` : ''
  const buckets = state.buckets > 0 ? `, bucket ${state.buckets_done} of ${state.buckets}` : ''
  progress.show(
    'update',
    `${state.phase ?? state.state}${part}${buckets}, ${formatBytes(state.bytes_done)}`,
  )
}

function updateLine(report: UpdateReport): string {
  return `${formatSeconds(report.seconds.total)}  ${formatBytes(report.bytes)}  ${report.gb_per_s.toFixed(2)} GB/s  ${report.mode}`
}

function throwIfInterrupted(interrupt: Interrupt): void {
  if (interrupt.signal.aborted) throw new CkptError('aborted', 'interrupted')
}

/** Stops waiting at an interrupt; a running daemon finishes what it has begun, which disturbs no engine. */
export async function orInterrupt<T>({ signal }: Interrupt, work: Promise<T>): Promise<T> {
  const interrupted = Promise.withResolvers<never>()
  const onAbort = () => interrupted.reject(new CkptError('aborted', 'interrupted'))
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  try {
    return await Promise.race([work, interrupted.promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
