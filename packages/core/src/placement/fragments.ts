import { cutAtMultiples } from './cut-copies.ts'
import type { DirectCopy } from './direct-copy.ts'

/** Fragments end at its multiples in their owner's source space, so that those of two ranks that need the same are the same. */
export const FRAGMENT_BYTES = 16 * 2 ** 20
/** To wait for another rank takes longer than to copy less than this. */
export const FRAGMENT_BYTES_LEAST = 64 * 2 ** 10

/** Contiguous pieces of what one rank copies, in columns: bytes of an owner's source space, and where they come to lie in its engine's memory. */
export interface Fragments {
  readonly count: number
  readonly owners: Float64Array
  readonly sources: Float64Array
  readonly bytes: Float64Array
  readonly allocations: Float64Array
  readonly destinations: Float64Array
}

/** Copies with nothing larger than a fragment that another rank could bring as well. */
export interface FragmentedCopies {
  /** In their order. */
  readonly copies: readonly DirectCopy[]
  /** Of each copy the fragment that it is; -1: of none. */
  readonly fragments: Int32Array
}

/** @param first number of the first fragment; @param countMax more are none */
export function fragment(
  copies: readonly DirectCopy[],
  first: number,
  countMax: number,
): FragmentedCopies {
  const parts: DirectCopy[] = []
  const fragments: number[] = []
  let next = first
  for (const copy of copies) {
    for (const part of copy.height === 1 ? cutAtMultiples(copy, FRAGMENT_BYTES) : [copy]) {
      const isOne = part.height === 1 && part.width >= FRAGMENT_BYTES_LEAST && next < countMax
      parts.push(part)
      fragments.push(isOne ? next++ : -1)
    }
  }
  return { copies: parts, fragments: Int32Array.from(fragments) }
}
