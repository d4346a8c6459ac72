import type { EngineHost } from '../../engines/host.ts'
import { engineKey } from '../updates/engine-key.ts'
import type { EngineBook } from '../updates/engines.ts'
import type { EngineMark } from '../updates/journal.ts'
import { stopTorn } from '../updates/stop-torn.ts'
import type { TornEngine } from './node-runs.ts'

/** What a daemon knows of its engines when its leader cannot be told: torn ones must not go on serving until it is back. */
export class NodeMarks {
  readonly #book: EngineBook
  readonly #host: EngineHost
  readonly #closing: AbortSignal

  constructor(book: EngineBook, host: EngineHost, closing: AbortSignal) {
    this.#book = book
    this.#host = host
    this.#closing = closing
  }

  /** For the leader that comes. */
  get held(): readonly EngineMark[] {
    return this.#book.marks
  }

  /** Marks these, which the leader's end has torn, and pauses those that can be paused. */
  async stop(torn: readonly TornEngine[]): Promise<void> {
    const records = torn.map(({ url, uds, kind, updateId }) => {
      const record = this.#book.record({
        key: engineKey({ url, uds }),
        url,
        uds,
        kind,
        ranks: [],
        node: 0,
      })
      record.kind = kind
      record.tornBy = updateId
      return record
    })
    if (records.length > 0) await stopTorn(this.#book, records, this.#host, this.#closing)
  }

  /** The leader has them in its own journal. */
  taken(): void {
    this.#book.giveAway().catch(() => {})
  }
}
