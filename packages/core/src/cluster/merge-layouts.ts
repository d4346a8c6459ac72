import { type PlacedTensor, requireAgreement } from '../checkpoint/merge-rows.ts'
import { naturalCompare } from '../checkpoint/natural-order.ts'
import type { SourceSpace, TensorTable } from '../checkpoint/table.ts'
import type { HeldLayout } from './layout-columns.ts'

/** A daemon's part of a checkpoint. */
export interface LayoutPart {
  /** How it is told of: `node 3`. */
  readonly place: string
  readonly layout: HeldLayout
}

export interface MergedLayout extends HeldLayout {
  /** By part: the index of its first owner; those of a part stay together, in its order. */
  readonly firstOwners: readonly number[]
  /** One of the tensors that several parts have, if there are any. */
  readonly repeated: RepeatedTensor | null
}

export interface RepeatedTensor {
  readonly tensor: string
  readonly places: readonly [string, string]
}

/**
 * What daemons hold of one checkpoint as one table, in natural order. Of a tensor that several hold, the first of them gives it.
 *
 * A part's own tensors are in natural order already, and mostly follow each other in the whole: the parts are merged by runs, whose
 * ends are looked for, so that most names are compared with no other.
 *
 * @throws CkptError `tensor_conflict` when dtype or shape of two of the same name differ, with both places
 */
export function mergeLayouts(parts: readonly LayoutPart[]): MergedLayout {
  const sources: SourceSpace[] = []
  const firstOwners = parts.map(({ layout }) => {
    const first = sources.length
    sources.push(...layout.sources)
    return first
  })
  const out = new Rows(parts, firstOwners)
  const heads = parts
    .map(({ layout }, part) => new Head(part, layout.table.names))
    .filter(({ ended }) => !ended)
    .sort((a, b) => (a.comesBefore(b) ? -1 : 1))
  let lastRun = 1
  for (let head = heads.shift(); head !== undefined; head = heads.shift()) {
    const begin = head.at
    head.passRun(heads[0], lastRun)
    lastRun = head.at - begin
    out.add(head.part, begin, head.at)
    if (!head.ended) heads.splice(placeOf(heads, head), 0, head)
  }
  return { table: out.table(), sources, firstOwners, repeated: out.repeated }
}

/** How far a part has been taken. */
class Head {
  readonly part: number
  readonly #names: readonly string[]
  /** Index of the name that comes next. */
  at = 0

  constructor(part: number, names: readonly string[]) {
    this.part = part
    this.#names = names
  }

  get ended(): boolean {
    return this.at === this.#names.length
  }

  /** Whether the next name comes before the next of another part; of one name the first part comes first. */
  comesBefore(other: Head): boolean {
    return this.#precedes(this.at, other)
  }

  #precedes(at: number, other: Head): boolean {
    const order = naturalCompare(this.#names[at] as string, other.#names[other.at] as string)
    return order === 0 ? this.part < other.part : order < 0
  }

  /**
   * Goes on to the first name that does not come before the next one of the rival, at least by one. Parts mostly take turns with
   * runs of one length: that of the last run is tried first.
   */
  passRun(rival: Head | undefined, lastRun: number): void {
    const { length } = this.#names
    if (rival === undefined) {
      this.at = length
      return
    }
    // the name at `low` comes before the rival's, that at `high` does not
    let low = this.at
    let high = length
    let step = Math.max(1, lastRun - 1)
    let next = 1
    while (low + step < high) {
      if (!this.#precedes(low + step, rival)) high = low + step
      else {
        low += step
        step = next
        next *= 2
      }
    }
    while (low + 1 < high) {
      const middle = (low + high) >> 1
      if (this.#precedes(middle, rival)) low = middle
      else high = middle
    }
    this.at = low + 1
  }
}

/** Where a head belongs among others that ascend. */
function placeOf(heads: readonly Head[], head: Head): number {
  let low = 0
  let high = heads.length
  // where parts take turns
  if (high === 0 || (heads[high - 1] as Head).comesBefore(head)) return high
  while (low < high) {
    const middle = (low + high) >> 1
    if ((heads[middle] as Head).comesBefore(head)) low = middle + 1
    else high = middle
  }
  return low
}

/** Columns that grow by runs of the parts' rows. */
class Rows {
  repeated: RepeatedTensor | null = null
  readonly #parts: readonly LayoutPart[]
  readonly #firstOwners: readonly number[]
  readonly #names: string[] = []
  readonly #shapes: (readonly number[])[] = []
  readonly #dtypes: Uint8Array
  readonly #bytes: Float64Array
  readonly #owners: Uint32Array
  readonly #offsets: Float64Array
  /** The part and index of the last row. */
  #last: readonly [number, number] | null = null

  constructor(parts: readonly LayoutPart[], firstOwners: readonly number[]) {
    this.#parts = parts
    this.#firstOwners = firstOwners
    const most = parts.reduce((sum, { layout }) => sum + layout.table.names.length, 0)
    this.#dtypes = new Uint8Array(most)
    this.#bytes = new Float64Array(most)
    this.#owners = new Uint32Array(most)
    this.#offsets = new Float64Array(most)
  }

  /** Rows `[begin, end)` of a part, whose names differ; the first may be what the last row was. */
  add(part: number, begin: number, end: number): void {
    const { table } = (this.#parts[part] as LayoutPart).layout
    let from = begin
    if (this.#last !== null && this.#names.at(-1) === table.names[begin]) {
      const [one, other] = [this.#tensorOf(this.#last), this.#tensorOf([part, begin])]
      requireAgreement(one, other, 'gather')
      this.repeated ??= { tensor: one.name, places: [one.place, other.place] }
      from++
    }
    if (from === end) return
    const row = this.#names.length
    const firstOwner = this.#firstOwners[part] as number
    for (let i = from; i < end; i++) {
      this.#names.push(table.names[i] as string)
      this.#shapes.push(table.shapes[i] as readonly number[])
      this.#owners[row + i - from] = firstOwner + (table.owners[i] as number)
    }
    this.#dtypes.set(table.dtypes.subarray(from, end), row)
    this.#bytes.set(table.bytes.subarray(from, end), row)
    this.#offsets.set(table.offsets.subarray(from, end), row)
    this.#last = [part, end - 1]
  }

  #tensorOf([part, index]: readonly [number, number]): PlacedTensor {
    const { place, layout } = this.#parts[part] as LayoutPart
    const { names, dtypes, shapes, bytes } = layout.table
    return {
      name: names[index] as string,
      dtype: dtypes[index] as number,
      shape: shapes[index] as readonly number[],
      bytes: bytes[index] as number,
      place,
    }
  }

  table(): TensorTable {
    const count = this.#names.length
    return {
      names: this.#names,
      shapes: this.#shapes,
      dtypes: this.#dtypes.slice(0, count),
      bytes: this.#bytes.slice(0, count),
      owners: this.#owners.slice(0, count),
      offsets: this.#offsets.slice(0, count),
    }
  }
}
