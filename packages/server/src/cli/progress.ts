/** Where progress goes: stderr when it is a terminal, nowhere otherwise (except notes). */
export interface ProgressStream {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

/**
 * One line a stage that is updated in place.
 *
 * @example
 * const progress = new Progress(process.stderr)
 * progress.show('register', '120.0 MB')
 * progress.done('register', '0.2 s')
 */
export class Progress {
  readonly #stream: ProgressStream | null
  readonly #notes: ProgressStream
  /** URLs of engines that are waited for. */
  readonly #told = new Set<string>()
  #shownAtMs = 0
  #open = false

  constructor(stream: ProgressStream = process.stderr) {
    this.#stream = stream.isTTY ? stream : null
    this.#notes = stream
  }

  /** Redraws the line; ten times a second is enough for a reader. */
  show(stage: string, text: string): void {
    const nowMs = performance.now()
    if (this.#stream === null || (this.#open && nowMs - this.#shownAtMs < 100)) return
    this.#shownAtMs = nowMs
    this.#write(stage, text)
    this.#open = true
  }

  /**
   * Says once of each engine what is waited for where no line can show it: a log must not stay silent for as long as a wait may
   * take, nor fill with reasons that change.
   */
  waits(engineUrl: string, text: string): void {
    if (this.#stream !== null || this.#told.has(engineUrl)) return
    this.#told.add(engineUrl)
    this.note(text)
  }

  /** Ends the line with its final text. */
  done(stage: string, text: string): void {
    if (this.#stream === null) return
    this.#write(stage, text)
    this.#stream.write('\n')
    this.#open = false
  }

  /** A line of its own about something unusual, also when the stream is no terminal. */
  note(text: string): void {
    this.clear()
    this.#notes.write(`ckpt: ${text}\n`)
  }

  /** Clears an unfinished line, so that an error does not end up behind it. */
  clear(): void {
    if (this.#open) this.#stream?.write('\r\x1b[2K')
    this.#open = false
  }

  #write(stage: string, text: string): void {
    const line = `${stage.padEnd(10)} ${text}`.slice(0, (this.#stream?.columns || 80) - 1)
    this.#stream?.write(`\r\x1b[2K${line}`)
  }
}
