import { CkptError } from '@ckpt/core'
import type { Options, Part } from './options.ts'
import { Processes } from './processes.ts'
import type { Results } from './results.ts'
import type { TestVersions } from './versions.ts'

/** Less is not worth beginning with, in seconds. */
const LEAST_SECONDS = 10
/** What an update may take less than its layout, so that the daemons can tell what they waited for. */
const MARGIN_SECONDS = 5
const UPDATE_SECONDS_MAX = 25

/** What every part works with. */
export interface Run {
  readonly options: Options
  readonly versions: TestVersions
  readonly results: Results
  /** 0: the host library. */
  readonly gpus: number
  /** By a signal of the user's. */
  readonly interrupted: AbortSignal
  /** When everything must have ended, of `performance.now()`. */
  readonly endMs: number
}

/** One layout, or what a part does with one pair of daemons. */
export interface Step {
  readonly part: Part
  readonly name: string
  work(place: StepPlace): Promise<void>
}

export interface StepPlace {
  /** Ends with the step. */
  readonly stack: AsyncDisposableStack
  /** Are killed with it. */
  readonly processes: Processes
  /** How far it is, for whoever watches. */
  readonly say: (text: string) => void
}

/** Seconds that an update of a step may take. */
export function updateSeconds({ options }: Run): number {
  return Math.max(1, Math.min(UPDATE_SECONDS_MAX, options.layoutSeconds - MARGIN_SECONDS))
}

/** Does it within its time; then, or when it fails, every process of it is killed and the row says why. */
export async function runStep(run: Run, { part, name, work }: Step): Promise<void> {
  const { results, options } = run
  const leftSeconds = (run.endMs - performance.now()) / 1000
  if (leftSeconds < LEAST_SECONDS) {
    return results.fail(part, name, `not begun: ${leftSeconds.toFixed(0)} s are left of all`)
  }
  const limitSeconds = Math.min(options.layoutSeconds, leftSeconds)
  const beganMs = performance.now()
  results.say(`${part} ${name}: begins, has ${limitSeconds.toFixed(0)} s`)
  await using stack = new AsyncDisposableStack()
  const processes = new Processes()
  const late = Promise.withResolvers<never>()
  let last = 'its beginning'
  const giveUp = () => late.reject(new Error(`not done in ${limitSeconds.toFixed(0)} s: ${last}`))
  const timer = setTimeout(giveUp, limitSeconds * 1000)
  const seconds = () => ((performance.now() - beganMs) / 1000).toFixed(1)
  const say = (text: string) => {
    last = text
    results.say(`${part} ${name}: ${text}, ${seconds()} s`)
  }
  const working = work({ stack, processes, say })
  working.catch(() => {}) // what it says once it was given up
  try {
    await unlessAborted(run.interrupted, Promise.race([working, late.promise]))
    say('done')
    await processes.end()
  } catch (error) {
    results.fail(part, name, describe(error))
    results.say([...processes.tails(), ...processes.busyThreads()].join('\n'))
  } finally {
    clearTimeout(timer)
    await processes.kill()
  }
  say('ended')
}

/** @throws what the signal was aborted with */
export async function unlessAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  signal.throwIfAborted()
  const aborted = Promise.withResolvers<never>()
  const end = () => aborted.reject(signal.reason)
  signal.addEventListener('abort', end, { once: true })
  try {
    return await Promise.race([work, aborted.promise])
  } finally {
    signal.removeEventListener('abort', end)
  }
}

/** With what a daemon says of who has failed, and when. */
export function describe(error: unknown): string {
  if (!(error instanceof CkptError)) return error instanceof Error ? error.message : String(error)
  const { code, message, rank, phase } = error.failure
  const where = [code, rank === undefined ? '' : `rank ${rank}`, phase ? `phase ${phase}` : '']
  return `${message} (${where.filter(Boolean).join(', ')})`
}
