import { writeFileSync, writeSync } from 'node:fs'
import { UsageError } from './options.ts'
import type { Seen } from './pair.ts'
import type { Compared } from './versions.ts'

/** One line of the table. */
export interface Row extends Compared {
  readonly part: string
  readonly what: string
  /** Of an update, from request to answer; of what is no update, how long it took. Null: it did not end. */
  readonly seconds: number | null
  readonly bytes: number | null
  /** Of the transfer alone. */
  readonly transferGbPerSecond: number | null
  readonly note: string
  readonly error: string | null
}

const STDOUT = 1
const WIDTHS = [4, 34, 9, 9, 10, 9, 12, 14] as const

/** Rows, told as they come: a run that is cut off has shown what it had. */
export class Results {
  readonly #json: string | null
  readonly #rows: Row[] = []
  readonly #facts: Record<string, unknown>
  /** Of pinned host memory to a device, of the same run; null: not measured. */
  h2dGbPerSecond: number | null = null

  /**
   * @param facts of the run, beside the rows of the document, which is written at once
   * @throws UsageError when it cannot be
   */
  constructor(json: string | null, facts: Record<string, unknown>) {
    this.#json = json
    this.#facts = facts
    try {
      this.#write(false)
    } catch (error) {
      throw new UsageError(`--json ${json}: ${(error as Error).message}`)
    }
  }

  /** What becomes known of the machine. */
  know(facts: Record<string, unknown>): void {
    Object.assign(this.#facts, facts)
  }

  say(text: string): void {
    writeSync(STDOUT, text.replace(/^/gm, '# ') + '\n')
  }

  head(): void {
    const names = ['part', 'case', 'seconds', 'GB/s', '% of H2D', 'transfer', 'wrong bytes']
    this.#line([...names, 'compared'], '')
  }

  add(row: Row): void {
    this.#rows.push(row)
    const { part, what, seconds, bytes, transferGbPerSecond, wrongBytes, comparedBytes } = row
    const rate = seconds === null || bytes === null ? null : bytes / seconds / 1e9
    const share = rate === null || !this.h2dGbPerSecond ? null : (100 * rate) / this.h2dGbPerSecond
    const figures = [seconds, rate, share, transferGbPerSecond]
    const [took, gbPerSecond, percent, transfer] = figures.map((one, at) =>
      one === null ? '-' : one.toFixed(at === 0 ? 3 : at === 2 ? 1 : 2),
    )
    const bytesText = [wrongBytes, comparedBytes].map(String)
    const cells = [part, what, took, gbPerSecond, percent, transfer, ...bytesText] as string[]
    this.#line(cells, row.error === null ? row.note : `FAILED: ${row.error}`)
    this.#write(false)
  }

  /**
   * Of an update that has ended well.
   *
   * @param transports that other daemons' memory may have been read by; null: nothing was to be read
   */
  update(
    part: string,
    what: string,
    seen: Seen,
    compared: Compared,
    transports: readonly string[] | null = null,
  ): void {
    const { report, seconds } = seen
    const { bytes, gb_per_s, ranks, buckets, ring_bytes, p2p } = report
    const ring = `ring ${(ring_bytes / 2 ** 20).toFixed(0)} MiB`
    const read = p2p === undefined ? [] : [`read by ${p2p.transports.join(' and ')}`]
    const note = [`${ranks} ranks`, `${buckets} buckets`, ring, ...read]
    const error = faultOf(compared) ?? readFault(p2p?.transports, transports)
    const rest = { bytes, seconds, transferGbPerSecond: gb_per_s, note: note.join(', '), error }
    this.add({ part, what, ...rest, ...compared })
  }

  /** What has taken so long, and is no update. */
  fact(part: string, what: string, seconds: number, note: string): void {
    const none = { bytes: null, transferGbPerSecond: null, comparedBytes: 0, wrongBytes: 0 }
    this.add({ part, what, seconds, note, error: null, ...none })
  }

  fail(part: string, what: string, error: string): void {
    const none = { bytes: null, transferGbPerSecond: null, comparedBytes: 0, wrongBytes: 0 }
    this.add({ part, what, seconds: null, note: '', error, ...none })
  }

  #line(cells: readonly string[], note: string): void {
    const padded = cells.map((cell, at) => {
      const width = WIDTHS[at] ?? 0
      return at < 2 ? cell.padEnd(width) : cell.padStart(width)
    })
    writeSync(STDOUT, `${[...padded, note].join(' ').trimEnd()}\n`)
  }

  #write(ended: boolean): void {
    if (this.#json === null) return
    const { h2dGbPerSecond } = this
    const document = {
      ...this.#facts,
      ended,
      passed: this.passed,
      h2dGbPerSecond,
      rows: this.#rows,
    }
    writeFileSync(this.#json, `${JSON.stringify(document, null, 1)}\n`)
  }

  get passed(): boolean {
    return this.#rows.length > 0 && this.#rows.every(({ error }) => error === null)
  }

  /** The last line. */
  end(): void {
    this.#write(true)
    const failed = this.#rows.filter(({ error }) => error !== null).length
    const verdict = this.passed ? 'passed' : `FAILED, ${failed} of ${this.#rows.length} rows`
    writeSync(STDOUT, `gpu-cluster: ${verdict}\n`)
  }
}

/** Null: bytes were compared, and all are right. */
export function faultOf({ comparedBytes, wrongBytes }: Compared): string | null {
  if (wrongBytes > 0) return 'bytes are wrong'
  return comparedBytes > 0 ? null : 'no bytes were compared'
}

/** Null: another daemon's memory was read, and in no other way than those that were meant. */
export function readFault(
  seen: readonly string[] | undefined,
  wanted: readonly string[] | null,
): string | null {
  if (wanted === null) return null
  if (seen === undefined || seen.length === 0) return 'nothing was read of the other daemon'
  const others = seen.filter((one) => !wanted.includes(one))
  return others.length === 0 ? null : `read by ${others.join(' and ')}, not ${wanted.join(' or ')}`
}
