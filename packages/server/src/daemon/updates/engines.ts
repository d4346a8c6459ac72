import type { Dialect, StatusAnswer } from '@ckpt/core'
import type { EngineKind } from '../../engines/adapter.ts'
import type { Journal, EngineMark } from './journal.ts'
import type { EngineRequest } from './request.ts'
import type { RateBook } from './rates.ts'
import type { EngineSpec } from './spec.ts'

/** Engines that are remembered; beyond it those that are whole are forgotten. */
const ENGINES_MAX = 1024

/** What the daemon remembers of an engine between updates. */
export interface EngineRecord {
  readonly key: string
  url: string
  readonly uds: string | null
  /** The daemon that contacts it. */
  readonly node: number
  kind: EngineKind | null
  dialect: Dialect | null
  /** Version of the last update that it took whole. */
  version: string | null
  /** It has taken an update whole. */
  updated: boolean
  /** Id of the update of which it holds a part. */
  tornBy: string | null
  /** We paused it, or were about to: a resume is owed until one was confirmed. Journalled before the pause is posted. */
  pausedByUs: boolean
  /** The last that we know is that it is paused, by whomever. */
  paused: boolean
  /** The last pause, and what is done when it was given up and takes place all the same: the next one waits for it. Never rejects. */
  late: Promise<void> | null
  /** Its answers to RPCs are out of step until it is started again; `listener` tells this start from later ones. */
  restart: { readonly listener: string | null } | null
  /** Why its next update cannot go straight into its memory; null: it may be tried; undefined: it has said nothing of it. */
  notDirect: string | null | undefined
  /** What tells the start of the engine that has said `notDirect: null` from later ones; null: that cannot be seen. */
  saidBy: Promise<string | null> | null
  /** It is a vLLM without a worker extension that takes updates by its own transfer; `start` tells this start from later ones. */
  native: { readonly start: string | null } | null
  /** What told its start when its last update by its own transfer came to its end; null: none did, or it cannot be seen. */
  nativeEnded: string | null
  /** Its last update went by vLLM's own transfer. */
  wentNatively: boolean
  /** The update request that it has not answered yet. */
  request: EngineRequest | null
  /** Writes the marks of all engines. */
  save(): Promise<void>
}

/** All engines that this daemon has met; what must survive it is kept in the journal too. */
export class EngineBook {
  readonly #records = new Map<string, EngineRecord>()
  readonly #journal: Journal

  constructor(journal: Journal) {
    this.#journal = journal
  }

  record(spec: EngineSpec): EngineRecord {
    const held = this.#records.get(spec.key)
    if (held !== undefined) {
      held.url = spec.url
      return held
    }
    this.#forget()
    const fresh: EngineRecord = {
      key: spec.key,
      url: spec.url,
      uds: spec.uds,
      node: spec.node,
      kind: null,
      dialect: null,
      version: null,
      updated: false,
      tornBy: null,
      pausedByUs: false,
      paused: false,
      late: null,
      restart: null,
      notDirect: undefined,
      saidBy: null,
      native: null,
      nativeEnded: null,
      wentNatively: false,
      request: null,
      save: () => this.save(),
    }
    this.#records.set(spec.key, fresh)
    return fresh
  }

  #forget(): void {
    if (this.#records.size < ENGINES_MAX) return
    for (const [key, record] of this.#records) {
      if (mustBeKept(record) || record.request !== null) continue
      this.#records.delete(key)
      return
    }
  }

  /** Takes over the marks that a predecessor left, or a daemon that could not tell: what is owed stays so. */
  restore(marks: readonly EngineMark[], keyOf: (mark: EngineMark) => string): void {
    for (const mark of marks) {
      const record = this.record({
        key: keyOf(mark),
        url: mark.url,
        uds: mark.uds,
        kind: null,
        ranks: [],
        node: mark.node ?? 0,
      })
      record.tornBy = mark.update_id ?? record.tornBy
      record.dialect = mark.dialect ?? record.dialect
      record.pausedByUs ||= mark.paused
      if (mark.restart_needed) record.restart = { listener: mark.listener }
    }
  }

  /** They are another daemon's to remember from now on. */
  async giveAway(): Promise<void> {
    this.#records.clear()
    await this.save()
  }

  /** A guest has gone, and comes as another one. */
  async forgetNode(node: number): Promise<void> {
    for (const [key, record] of this.#records) {
      if (record.node === node) this.#records.delete(key)
    }
    await this.save()
  }

  /** Torn, but as far as is known not paused, of a kind that is known. */
  servingTorn(node: number): EngineRecord[] {
    return [...this.#records.values()].filter((record) => {
      return (
        record.node === node && record.tornBy !== null && !record.paused && record.kind !== null
      )
    })
  }

  /** No pause that was given up may still take place unseen. */
  async settled(): Promise<void> {
    await Promise.all([...this.#records.values()].map(({ late }) => late))
  }

  async save(): Promise<void> {
    await this.#journal.engines(this.marks)
  }

  get marks(): EngineMark[] {
    const marks: EngineMark[] = []
    for (const record of this.#records.values()) {
      if (!mustBeKept(record)) continue
      marks.push({
        url: record.url,
        uds: record.uds,
        ...(record.node === 0 ? {} : { node: record.node }),
        update_id: record.tornBy,
        dialect: record.dialect,
        paused: record.pausedByUs,
        restart_needed: record.restart !== null,
        listener: record.restart?.listener ?? null,
      })
    }
    return marks
  }

  status(rates: Pick<RateBook, 'engine'>): StatusAnswer['engines'] {
    return [...this.#records.values()].map(
      ({ key, url, dialect, wentNatively, tornBy, version, updated, restart }) => ({
        url,
        dialect,
        ...(wentNatively ? { method: 'native-ipc' } : {}),
        torn: tornBy !== null,
        updated,
        ...(restart === null ? {} : { engine_restart_needed: true }),
        version,
        rates: rates.engine(key),
      }),
    )
  }
}

function mustBeKept(record: EngineRecord): boolean {
  return record.tornBy !== null || record.pausedByUs || record.restart !== null
}
