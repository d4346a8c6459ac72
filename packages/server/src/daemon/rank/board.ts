import type { DirectCopy, Fragments, Sharer } from '@ckpt/core'
import type { Handle } from '@ckpt/cuda'

/** Of what is larger the rest is copied by every rank itself. */
export const FRAGMENTS_MAX = 32_768
export const ALLOCATIONS_MAX = 8192
const COLUMNS = 5
const HEAD_BYTES = 32
const COLUMN_BYTES = FRAGMENTS_MAX * 8
const HANDLES_AT = HEAD_BYTES + COLUMNS * COLUMN_BYTES
const GIVEN_AT = HANDLES_AT + ALLOCATIONS_MAX * 4
export const BOARD_BYTES = GIVEN_AT + FRAGMENTS_MAX

const COUNT = 0
const LINK = 1
const STAMP_MAX = 2 ** 52

/**
 * Where one rank says what it copies in a direct update, and what of it is there, to the other ranks of its daemon. It is written by
 * that rank alone: the fragments before it says that it has looked, so that all are read by when any rank is told to copy.
 */
export class Board {
  /** Number of fragments, number of the device. */
  readonly #head: Int32Array
  readonly #otherBytes: Float64Array
  readonly #stamp: Float64Array
  readonly #columns: readonly Float64Array[]
  /** Of each allocation; 0: it is not open yet. */
  readonly #handles: Int32Array
  /** Of each fragment: 1 when it is there. */
  readonly #given: Uint8Array

  constructor(buffer: SharedArrayBuffer) {
    this.#head = new Int32Array(buffer, 0, 4)
    this.#otherBytes = new Float64Array(buffer, 16, 1)
    this.#stamp = new Float64Array(buffer, 24, 1)
    this.#columns = Array.from({ length: COLUMNS }, (_, column) => {
      return new Float64Array(buffer, HEAD_BYTES + column * COLUMN_BYTES, FRAGMENTS_MAX)
    })
    this.#handles = new Int32Array(buffer, HANDLES_AT, ALLOCATIONS_MAX)
    this.#given = new Uint8Array(buffer, GIVEN_AT, FRAGMENTS_MAX)
  }

  /** Another one whenever fragments are written, whoever writes them: a Worker may be replaced, and its board. */
  get stamp(): number {
    return this.#stamp[0] as number
  }

  /** @param otherBytes what it copies beside them */
  write(fragments: readonly DirectCopy[], otherBytes: number, device: number): void {
    const [owners, sources, bytes, allocations, destinations] = this.#columns as Float64Array[]
    for (const [index, one] of fragments.entries()) {
      owners![index] = one.owner
      sources![index] = one.source
      bytes![index] = one.width
      allocations![index] = one.allocation
      destinations![index] = one.destination
    }
    this.#otherBytes[0] = otherBytes
    Atomics.store(this.#head, COUNT, fragments.length)
    Atomics.store(this.#head, LINK, device)
    this.#stamp[0] = Math.floor(Math.random() * STAMP_MAX)
  }

  /** Nothing is there. */
  clear(): void {
    this.#handles.fill(0)
    this.#given.fill(0)
  }

  get sharer(): Sharer {
    const count = Atomics.load(this.#head, COUNT)
    const [owners, sources, bytes, allocations, destinations] = this.#columns as Float64Array[]
    const columns = { owners, sources, bytes, allocations, destinations }
    const fragments = { count, ...columns } as Fragments
    const link = Atomics.load(this.#head, LINK)
    return { fragments, link, otherBytes: this.#otherBytes[0] as number }
  }

  /** It is there, in memory with this handle. */
  give(fragment: number, memory: Handle): void {
    const allocation = this.#columns[3]?.[fragment] as number
    Atomics.store(this.#handles, allocation, memory)
    Atomics.store(this.#given, fragment, 1)
  }

  /** Where it lies; null: it is not there yet. */
  placeOf(fragment: number): { readonly memory: Handle; readonly offset: number } | null {
    if (Atomics.load(this.#given, fragment) === 0) return null
    const allocation = this.#columns[3]?.[fragment] as number
    const memory = Atomics.load(this.#handles, allocation) >>> 0
    return { memory, offset: this.#columns[4]?.[fragment] as number }
  }
}
