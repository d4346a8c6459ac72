import { CkptError, type Failure } from '@ckpt/core/api/errors'

/** The budget does not hold what is wanted; the main thread may drop an older version and try again. */
export class HostMemoryError extends CkptError {
  readonly wantedBytes: number
  /** Bytes that must become free first. */
  readonly shortBytes: number

  constructor(message: string, wantedBytes: number, shortBytes: number) {
    super('host_memory_exhausted', message)
    this.wantedBytes = wantedBytes
    this.shortBytes = shortBytes
  }

  static of(
    failure: Failure,
    memory: { wantedBytes: number; shortBytes: number },
  ): HostMemoryError {
    return new HostMemoryError(failure.message, memory.wantedBytes, memory.shortBytes)
  }
}
