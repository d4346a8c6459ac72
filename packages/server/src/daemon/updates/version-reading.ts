import type { Library } from '@ckpt/cuda'
import type { HeldVersion, SourceReading } from '../types.ts'
import { readState, waitForFiles } from './head-start.ts'

/** The reading of a version's files that went on when its update began. */
export class VersionReading {
  readonly readings: readonly SourceReading[]
  /** Begin and end, of `clockMs`; empty: it goes on, or there was none. */
  span = new Float64Array(0)
  readonly #library: Library

  constructor(library: Library, version: HeldVersion | null) {
    this.#library = library
    this.readings = version?.readings.filter((reading) => reading !== null) ?? []
  }

  /** All was read, in so many seconds. */
  ended(seconds: number): void {
    if (this.readings.length === 0) return
    const beginMs = Math.min(...this.readings.map(({ startedMs }) => startedMs))
    this.span = Float64Array.of(beginMs, beginMs + seconds * 1000)
  }

  get goesOn(): boolean {
    return this.readings.length > 0 && this.span.length === 0
  }

  /** See {@link waitForFiles}. */
  headStart(stopped: () => boolean): Promise<void> {
    return waitForFiles(this.#library, this.readings, () => !this.goesOn || stopped())
  }

  /** What a wait that was too long has to do with files that are not read yet. */
  get words(): string {
    if (!this.goesOn) return ''
    const { bytes, bytesDone } = readState(this.#library, this.readings)
    return `; ${bytesDone} of the ${bytes} bytes of its files have been read so far`
  }
}
