import { clockMs } from '../clock.ts'

/** After a failure: until the engines' workers must have left. Rings of those that have not go into quarantine. */
const LEAVE_MS = 5000
/** An update ends within its timeout and two seconds; these are the moments of those two seconds. */
const AFTER_DEADLINE_MS = { fail: 250, left: 900, stuck: 1500, engines: 1800 } as const
const ENGINE_CALL_MS = { most: 3000, least: 250 } as const
/** So that what a wait has to say about its own deadline comes before the update's. */
const BEFORE_DEADLINE_MS = 50

/** How long an update may still do what, in milliseconds from now. */
export class UpdateTimes {
  /** Of `clockMs`. */
  readonly deadlineMs: number

  constructor(deadlineMs: number) {
    this.deadlineMs = deadlineMs
  }

  #until(afterDeadlineMs: number): number {
    return Math.max(0, this.deadlineMs + afterDeadlineMs - clockMs())
  }

  get leftMs(): number {
    return this.#until(0)
  }

  /** Wait for somebody who can say why he is late. */
  get waitMs(): number {
    return Math.max(0, this.leftMs - BEFORE_DEADLINE_MS)
  }

  /** Go on when nobody has said that the time is over. */
  get failMs(): number {
    return this.leftMs + AFTER_DEADLINE_MS.fail
  }

  /** After a failure: let the ranks and their engine workers leave. */
  get leaveMs(): number {
    return Math.min(LEAVE_MS, this.#until(AFTER_DEADLINE_MS.left))
  }

  /** After a failure: wait for ranks that have not left by then. */
  get stuckMs(): number {
    const more = AFTER_DEADLINE_MS.stuck - AFTER_DEADLINE_MS.left
    return Math.min(this.leaveMs + more, this.#until(AFTER_DEADLINE_MS.stuck))
  }

  /** After a failure: ask the engines what has become of them. */
  get callMs(): number {
    const left = Math.min(ENGINE_CALL_MS.most, this.#until(AFTER_DEADLINE_MS.engines))
    return Math.max(ENGINE_CALL_MS.least, left)
  }
}
