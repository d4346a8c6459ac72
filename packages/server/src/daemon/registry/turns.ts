import { CkptError } from '@ckpt/core'

/** The most operations that may wait for one checkpoint name. */
const WAITING_MAX = 64

/** One operation at a time for each checkpoint name; the others wait in the order in which they came. */
export class Turns {
  readonly #queues = new Map<string, { last: Promise<unknown>; waiting: number }>()

  /** Whether an operation runs or waits, whatever the name. */
  get anyBusy(): boolean {
    return this.#queues.size > 0
  }

  /** Whether an operation runs or waits for the name. */
  busy(name: string): boolean {
    return this.#queues.has(name)
  }

  /** @throws CkptError `queue_full` */
  async run<T>(name: string, work: () => Promise<T>): Promise<T> {
    const queue = this.#queues.get(name) ?? { last: Promise.resolve(), waiting: 0 }
    if (queue.waiting >= WAITING_MAX) {
      throw new CkptError('queue_full', `${WAITING_MAX} operations wait for checkpoint '${name}'`)
    }
    queue.waiting += 1
    this.#queues.set(name, queue)
    const mine = queue.last.then(work)
    queue.last = mine.catch(() => {})
    try {
      return await mine
    } finally {
      queue.waiting -= 1
      if (queue.waiting === 0) this.#queues.delete(name)
    }
  }
}
