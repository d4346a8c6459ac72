import { buildTable, CkptError, layoutDigest, type TensorRow } from '@ckpt/core'
import type { FinishedLoad, LoadedPart, PartId } from '../memory/protocol.ts'
import type { HeldVersion } from '../types.ts'

/** What one registration put into memory: all of a version, or the part that one rank owns. */
export interface HeldPart {
  /** Ascends with every registration. */
  readonly id: PartId
  readonly name: string
  /** Rank of the rank socket; null: the daemon as a whole. */
  readonly owner: number | null
  readonly version: string | null
  readonly files: readonly string[]
  readonly loaded: LoadedPart
  /** Updates that hold it. */
  leases: number
  /** Ascends with every registration and every lease. */
  usedAt: number
  /** A newer version was put into an engine: it goes when no update holds it any more. */
  outdated: boolean
  /** Path of an in-place file that was changed. */
  invalid: string | null
  /** Its bytes are still being read. */
  reading: boolean
  /** The end of reading; rejects with what failed. */
  complete: Promise<FinishedLoad>
}

/** A part takes the place of older ones of its owner; the daemon as a whole stands for every owner. */
export function supersedes(newer: Pick<HeldPart, 'id' | 'owner'>, older: HeldPart): boolean {
  return newer.id > older.id && overlap(newer.owner, older.owner)
}

function overlap(one: number | null, other: number | null): boolean {
  return one === other || one === null || other === null
}

/** The parts of all checkpoints: which are current, which are superseded. Only bookkeeping. */
export class Versions {
  readonly #parts = new Map<string, HeldPart[]>()
  readonly #combined = new Map<string, { version: HeldVersion; parts: readonly HeldPart[] }>()
  readonly #allRanks: readonly number[]
  /** Parts whose reading failed while an update uses them: they go with its lease. */
  readonly #failing = new Set<HeldPart>()
  #uses = 0

  constructor(allRanks: readonly number[]) {
    this.#allRanks = allRanks
  }

  get names(): string[] {
    return [...this.#parts.keys()]
  }

  /** All parts of a checkpoint, oldest first. */
  all(name: string): readonly HeldPart[] {
    return this.#parts.get(name) ?? []
  }

  /** The newest part of each owner, in the order of the ranks. */
  current(name: string): readonly HeldPart[] {
    const all = this.all(name)
    return all
      .filter((part) => !all.some((newer) => supersedes(newer, part)))
      .sort((a, b) => (a.owner ?? 0) - (b.owner ?? 0))
  }

  /** Parts of `name` that stand in the way of a registration by `owner`. */
  held(name: string, owner: number | null): readonly HeldPart[] {
    return this.all(name).filter((part) => overlap(part.owner, owner))
  }

  /** Current parts of other ranks, whose tensors must agree with those of `owner`. */
  peers(name: string, owner: number | null): PartId[] {
    if (owner === null) return []
    return this.current(name)
      .filter((part) => !overlap(part.owner, owner))
      .map(({ id }) => id)
  }

  /** Parts with a complete newer version that no update holds: not even an update to come will use them. */
  superseded(name: string): HeldPart[] {
    const current = new Set(this.current(name))
    return this.all(name).filter((part) => !current.has(part) && part.leases === 0)
  }

  lease(parts: readonly HeldPart[]): void {
    for (const part of parts) {
      part.leases += 1
      part.usedAt = ++this.#uses
    }
  }

  /** Ends a lease; returns what is to be dropped now: after a success, all that the leased parts supersede. */
  release(parts: readonly HeldPart[], succeeded: boolean): HeldPart[] {
    for (const part of parts) {
      part.leases -= 1
      if (!succeeded) continue
      for (const older of this.all(part.name)) {
        if (supersedes(part, older)) older.outdated = true
      }
    }
    const names = new Set(parts.map(({ name }) => name))
    const outdated = [...names].flatMap((name) => this.all(name).filter((part) => part.outdated))
    const gone = [...outdated, ...parts.filter((part) => this.#failing.has(part))]
    const free = gone.filter((part) => part.leases === 0)
    for (const part of free) this.#failing.delete(part)
    return free
  }

  /** Its bytes are there. */
  completed(part: HeldPart): void {
    part.reading = false
    this.#combined.delete(part.name)
  }

  /** Its bytes will never be there: nobody gets it any more. True when it can be dropped now. */
  failed(part: HeldPart): boolean {
    this.remove(part)
    if (part.leases === 0) return true
    this.#failing.add(part)
    return false
  }

  /** Parts that nobody gets any more and an update still uses. */
  get failing(): Iterable<HeldPart> {
    return this.#failing
  }

  add(part: HeldPart): void {
    part.usedAt = ++this.#uses
    this.#parts.set(part.name, [...this.all(part.name), part])
    this.#combined.delete(part.name)
  }

  remove(part: HeldPart): void {
    const rest = this.all(part.name).filter((other) => other !== part)
    if (rest.length > 0) this.#parts.set(part.name, rest)
    else this.#parts.delete(part.name)
    this.#combined.delete(part.name)
  }

  byId(id: PartId): HeldPart | undefined {
    for (const parts of this.#parts.values()) {
      const found = parts.find((part) => part.id === id)
      if (found !== undefined) return found
    }
    return undefined
  }

  /**
   * The newest version: the current parts together. Two owners may hold the same tensor; the first one's is used.
   *
   * @throws CkptError `checkpoint_not_found`
   */
  newest(name: string): { readonly version: HeldVersion; readonly parts: readonly HeldPart[] } {
    const known = this.#combined.get(name)
    if (known !== undefined) return known
    const parts = this.current(name)
    if (parts.length === 0) {
      throw new CkptError('checkpoint_not_found', `no checkpoint '${name}' is registered`)
    }
    const combined = { version: combine(name, parts, this.#allRanks), parts }
    this.#combined.set(name, combined)
    return combined
  }
}

/** A version without owners: what a gather finds when nothing is registered. */
export function emptyVersion(name: string): HeldVersion {
  const table = buildTable([])
  return {
    name,
    version: null,
    serial: 0,
    table,
    sources: [],
    buffers: [],
    readings: [],
    ownerRanks: [],
    ownerNodes: [],
    bytes: 0,
    layoutDigest: layoutDigest(table, []),
    files: [],
  }
}

/** @throws CkptError `checkpoint_invalid` or `tensor_conflict` when the parts cannot be used together */
export function requireUsable(name: string, parts: readonly HeldPart[]): void {
  for (const { invalid } of parts) {
    if (invalid === null) continue
    throw new CkptError(
      'checkpoint_invalid',
      `checkpoint '${name}' was registered in place and ${invalid} was changed since: register it again`,
    )
  }
  const ids = new Set(parts.map(({ id }) => id))
  for (const { loaded } of parts) {
    const conflict = loaded.conflicts.find(({ peer }) => ids.has(peer))
    if (conflict !== undefined) throw CkptError.from(conflict.failure)
  }
}

function combine(
  name: string,
  parts: readonly HeldPart[],
  allRanks: readonly number[],
): HeldVersion {
  const [first] = parts as readonly [HeldPart]
  const single = parts.length === 1
  const table = single ? first.loaded.table : joinTables(parts)
  const sources = parts.map(({ loaded }) => loaded.source)
  return {
    name,
    version: parts.every(({ version }) => version === first.version) ? first.version : null,
    serial: Math.max(...parts.map(({ id }) => id)),
    table,
    sources,
    buffers: parts.map(({ loaded }) => loaded.buffers),
    readings: parts.map(({ loaded, reading }) => (reading ? loaded.reading : null)),
    ownerRanks: parts.map(({ owner }) => (owner === null ? allRanks : [owner])),
    ownerNodes: parts.map(() => 0),
    bytes: table.bytes.reduce((total, bytes) => total + bytes, 0),
    layoutDigest: single ? first.loaded.layoutDigest : layoutDigest(table, sources),
    files: parts.flatMap(({ loaded }) => [...loaded.files]),
  }
}

function joinTables(parts: readonly HeldPart[]) {
  const rows = new Map<string, TensorRow>()
  for (const [owner, { loaded }] of parts.entries()) {
    const { names, dtypes, shapes, bytes, offsets } = loaded.table
    for (const [row, name] of names.entries()) {
      if (rows.has(name)) continue
      rows.set(name, {
        name,
        dtype: dtypes[row]!,
        shape: shapes[row]!,
        bytes: bytes[row]!,
        owner,
        offset: offsets[row]!,
      })
    }
  }
  return buildTable([...rows.values()])
}
