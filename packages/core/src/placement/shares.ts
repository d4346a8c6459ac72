import type { Fragments } from './fragments.ts'
import { divide, type PieceSet, type Quotas, takeLink } from './quotas.ts'

/** One rank of those that share, all of one daemon. */
export interface Sharer {
  readonly fragments: Fragments
  /** Ranks whose device has the same link. */
  readonly link: number
  /** What it copies beside its fragments. */
  readonly otherBytes: number
}

/** A fragment that this rank takes from another one's engine. */
export interface Taken {
  /** Its own. */
  readonly fragment: number
  /** Among the sharers. */
  readonly from: number
  /** The other one's. */
  readonly theirs: number
}

export interface Share {
  readonly taken: readonly Taken[]
  /** Its own fragments that others take, ascending. */
  readonly given: Uint32Array
}

/** A fragment that several ranks need. */
interface Common {
  readonly owner: number
  readonly source: number
  readonly bytes: number
  /** By sharer, ascending; of each the number of its fragment. */
  readonly holders: readonly number[]
  readonly fragments: readonly number[]
}

/**
 * What each of some ranks takes from another one instead of copying it over its device's link: of what several need one brings it, so
 * that the links carry as much as each other as far as that is possible. Ranks that plan for themselves get the same.
 */
export function planShares(sharers: readonly Sharer[]): readonly Share[] {
  const { common, alone } = commonFragments(sharers)
  const loads = new Map<number, number>()
  for (const [index, { link, otherBytes }] of sharers.entries()) {
    loads.set(link, (loads.get(link) ?? 0) + otherBytes + (alone[index] as number))
  }
  const quotas = quotasOf(common, sharers, loads)
  const taken: Taken[][] = sharers.map(() => [])
  const given: number[][] = sharers.map(() => [])
  const brought = sharers.map(() => 0)
  for (const one of common) {
    const { holders, fragments, bytes } = one
    const link = takeLink(quotas.get(one) as Quotas, bytes)
    const here = [...holders.keys()].filter((at) => sharers[holders[at] as number]?.link === link)
    const at = most(here, (of) => -(brought[holders[of] as number] as number))
    const from = holders[at] as number
    brought[from] = (brought[from] as number) + bytes
    const theirs = fragments[at] as number
    given[from]?.push(theirs)
    for (const [other, holder] of holders.entries()) {
      if (other === at) continue
      taken[holder]?.push({ fragment: fragments[other] as number, from, theirs })
    }
  }
  return sharers.map((_, index) => ({
    taken: taken[index] ?? [],
    given: Uint32Array.from(given[index] ?? []).sort(),
  }))
}

/** Those that several need, by owner and source; and bytes of each rank's that nobody else does. */
function commonFragments(sharers: readonly Sharer[]) {
  const owners = new Map<
    number,
    Map<number, { bytes: number; holders: number[]; fragments: number[] }>
  >()
  for (const [index, { fragments: own }] of sharers.entries()) {
    for (let at = 0; at < own.count; at++) {
      const sources = owners.get(own.owners[at] as number) ?? new Map()
      owners.set(own.owners[at] as number, sources)
      const bytes = own.bytes[at] as number
      const known = sources.get(own.sources[at] as number)
      // where two begin alike and are not, each has its own
      if (known === undefined) {
        sources.set(own.sources[at] as number, { bytes, holders: [index], fragments: [at] })
      } else if (known.bytes === bytes && !known.holders.includes(index)) {
        known.holders.push(index)
        known.fragments.push(at)
      }
    }
  }
  const all = [...owners].flatMap(([owner, sources]) =>
    [...sources].map(([source, one]) => ({ owner, source, ...one })),
  )
  const common = all
    .filter(({ holders }) => holders.length > 1)
    .sort((a, b) => a.owner - b.owner || a.source - b.source)
  const alone = sharers.map(({ fragments: { bytes, count } }) =>
    bytes.subarray(0, count).reduce((sum, one) => sum + one, 0),
  )
  for (const { holders, bytes } of common) {
    for (const holder of holders) alone[holder] = (alone[holder] as number) - bytes
  }
  return { common: common as readonly Common[], alone }
}

/** Of each fragment the quotas of those that the same links could bring. */
function quotasOf(
  common: readonly Common[],
  sharers: readonly Sharer[],
  loads: ReadonlyMap<number, number>,
): Map<Common, Quotas> {
  const sets = new Map<string, PieceSet>()
  const keys = common.map(({ holders, bytes }) => {
    const links = [...new Set(holders.map((holder) => sharers[holder]?.link as number))]
    links.sort((a, b) => a - b)
    const key = links.join()
    const set = sets.get(key) ?? { links, bytes: 0 }
    set.bytes += bytes
    sets.set(key, set)
    return key
  })
  const divided = divide([...sets.values()], loads)
  const byKey = new Map([...sets.keys()].map((key, index) => [key, divided[index] as Quotas]))
  return new Map(common.map((one, index) => [one, byKey.get(keys[index] as string) as Quotas]))
}

/** The first of those that have most. */
function most(of: readonly number[], value: (one: number) => number): number {
  return of.reduce((best, one) => (value(one) > value(best) ? one : best))
}
