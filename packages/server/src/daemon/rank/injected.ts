import { renameSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core/api/errors'
import { type Library, NativeError, STATUS_ERR_DEVICE_LOST } from '@ckpt/cuda'

/**
 * Directory of the faults that tests have rank Workers of this process make; absent, as it is everywhere else: none is looked for.
 * A file there is a fault: `KIND@STEP`. The Worker that makes it renames it to `KIND@STEP.struck`.
 *
 * | kind | what the Worker does at that step |
 * |---|---|
 * | `throw` | its work throws |
 * | `lose` | its device is lost, as the native library says that |
 * | `die` | it ends, as one that has thrown where nobody expects it |
 * | `hold` | nothing, until the renamed file is removed |
 * | `hang` | does not come back out of a native call |
 */
const DIRECTORY = process.env.CKPT_FAULT_DIR ?? null
const KINDS = ['throw', 'lose', 'die', 'hold', 'hang'] as const
export type FaultKind = (typeof KINDS)[number]
/** What finds it: copies are looked after by their events. */
const LOSES = 'ckpt_event_query'
const HOLD_MS = 20
/** Longer than any test. */
const HANG_MS = 3_600_000

/** Of a direct update's copies: the percentages of them, made, at which a fault can strike. At 0 the first are on their way. */
const COPIED_PERCENT = [0, 50, 70, 100] as const
export type CopiedStep = `copied-${(typeof COPIED_PERCENT)[number]}`

/**
 * Where a fault can strike: a plan is made, the ranks meet, a run opens, list K is sent, a run is released; in a direct update its
 * engine is asked, has said where its weights lie, is to hold still, does, and copies are made.
 */
export type FaultStep =
  | 'plan'
  | 'meet'
  | 'open'
  | `list-${number}`
  | 'look'
  | 'looked'
  | 'begin'
  | 'begun'
  | CopiedStep
  | 'release'

/** Makes the fault of this step, if a test has put one there. */
export function inject(library: Library, step: FaultStep): void {
  if (DIRECTORY === null) return
  const kind = KINDS.find((one) => moved(`${one}@${step}`, `${one}@${step}.struck`))
  if (kind === 'throw') throw new CkptError('rank_failed', `injected at ${step}`)
  if (kind === 'lose') {
    throw new NativeError(LOSES, STATUS_ERR_DEVICE_LOST, `injected at ${step}`)
  }
  if (kind === 'die') process.exit(1)
  if (kind === 'hang') wait(library, HANG_MS)
  if (kind !== 'hold') return
  const held = `${kind}@${step}.struck`
  while (moved(held, held)) wait(library, HOLD_MS)
}

/** As {@link inject}, where so many of a direct update's copies are complete. */
export function injectCopied(library: Library, complete: number, all: number): void {
  if (DIRECTORY === null) return
  for (const percent of COPIED_PERCENT) {
    if (100 * complete >= percent * all) inject(library, `copied-${percent}`)
  }
}

/** False: it is not there. */
function moved(from: string, to: string): boolean {
  try {
    renameSync(join(DIRECTORY as string, from), join(DIRECTORY as string, to))
    return true
  } catch {
    return false
  }
}

/** In a native call that nothing ends. */
function wait(library: Library, ms: number): void {
  const signal = library.signalCreate()
  try {
    library.signalWait(signal, ms)
  } catch {
    // the time is up
  } finally {
    library.signalDestroy(signal)
  }
}
