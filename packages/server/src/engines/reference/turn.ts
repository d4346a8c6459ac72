import { CkptError } from '@ckpt/core'

/** The most callers that wait. */
const WAITING_MAX = 64

/** One caller at a time, in the order in which they came: a rank does one thing at a time. */
export class Turn {
  #last: Promise<unknown> = Promise.resolve()
  #waiting = 0

  /** Runs `work` when everyone before has finished. Throws `queue_full` when too many wait, `engine_busy` at `timeoutMs`. */
  async take<T>(timeoutMs: number, work: () => Promise<T>): Promise<T> {
    if (this.#waiting >= WAITING_MAX) {
      throw new CkptError('queue_full', `${WAITING_MAX} requests wait already`)
    }
    this.#waiting++
    const before = this.#last
    let expired = false
    const mine = before.then(() => {
      if (expired) return null
      this.#waiting--
      return { value: work() }
    })
    this.#last = mine.then((run) => run?.value).catch(() => {})
    const limit = setTimeoutPromise(timeoutMs)
    const run = await Promise.race([mine, limit.promise])
    limit.cancel()
    if (run !== null) return run.value
    expired = true
    this.#waiting--
    throw new CkptError('engine_busy', `waited ${timeoutMs} ms for the request before`)
  }
}

function setTimeoutPromise(timeoutMs: number): { promise: Promise<null>; cancel: () => void } {
  let cancel = () => {}
  const promise = new Promise<null>((resolve) => {
    const timer = setTimeout(() => resolve(null), timeoutMs)
    cancel = () => clearTimeout(timer)
  })
  return { promise, cancel }
}
