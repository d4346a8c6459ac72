import type { Failure } from '@ckpt/core'

const CODE = 'device_lost'

/** The loss of a device of this daemon, which is its end, when the engines of the update that goes on have been released. */
export class DeviceLoss {
  readonly #told = Promise.withResolvers<Failure>()
  readonly #busy: () => boolean
  #failure: Failure | null = null

  /** @param busy whether an update goes on, whichever daemon drives it */
  constructor(busy: () => boolean) {
    this.#busy = busy
  }

  /** Settles when the daemon must close. */
  get told(): Promise<Failure> {
    return this.#told.promise
  }

  /** To be told of whatever fails on a rank of this daemon. */
  take(failure: Failure): void {
    if (failure.code !== CODE) return
    this.#failure ??= failure
    if (!this.#busy()) this.idle()
  }

  /** An update has ended. */
  idle(): void {
    if (this.#failure !== null) this.#told.resolve(this.#failure)
  }
}
