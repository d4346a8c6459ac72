import type { Fragments } from './fragments.ts'

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

/** Fragments that the same ranks need. */
interface CommonSet {
  readonly links: readonly number[]
  bytes: number
  /** Bytes that each of the links brings. */
  readonly quotas: Map<number, number>
}

const ROUNDS_MAX = 200

/**
 * What each of some ranks takes from another one instead of copying it over its device's link: of what several need one brings it, so
 * that the links carry as much as each other as far as that is possible. Ranks that plan for themselves get the same.
 */
export function planShares(sharers: readonly Sharer[]): readonly Share[] {
  const { common, alone } = commonFragments(sharers)
  const loads = new Map<number, number>()
  const add = (to: Map<number, number>, link: number, bytes: number) =>
    to.set(link, (to.get(link) ?? 0) + bytes)
  for (const [index, { link, otherBytes }] of sharers.entries()) {
    add(loads, link, otherBytes + (alone[index] as number))
  }
  const sets = setsOf(common, sharers)
  balance([...new Set(sets.values())], loads)
  const taken: Taken[][] = sharers.map(() => [])
  const given: number[][] = sharers.map(() => [])
  const brought = sharers.map(() => 0)
  for (const one of common) {
    const { holders, fragments, bytes } = one
    const { links, quotas } = sets.get(one) as CommonSet
    const link = most(links, (of) => quotas.get(of) ?? 0)
    add(quotas, link, -bytes)
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

function setsOf(common: readonly Common[], sharers: readonly Sharer[]): Map<Common, CommonSet> {
  const known = new Map<string, CommonSet>()
  const sets = new Map<Common, CommonSet>()
  for (const one of common) {
    const key = one.holders.join()
    const links = [...new Set(one.holders.map((holder) => sharers[holder]?.link as number))]
    const set = known.get(key) ?? { links, bytes: 0, quotas: new Map() }
    set.bytes += one.bytes
    known.set(key, set)
    sets.set(one, set)
  }
  return sets
}

/**
 * Gives the links of each set their quotas, so that the largest load is as small as it can be: set by set they are made as equal as
 * that one allows, until nothing moves any more.
 */
function balance(sets: readonly CommonSet[], loads: Map<number, number>): void {
  for (let round = 0; round < ROUNDS_MAX; round++) {
    let moved = 0
    for (const set of sets) moved += fill(set, loads)
    if (moved < 1) return
  }
}

/** As water fills a vessel with steps. Returns bytes that have moved. */
function fill({ links, bytes, quotas }: CommonSet, loads: Map<number, number>): number {
  const base = (link: number) => (loads.get(link) ?? 0) - (quotas.get(link) ?? 0)
  const ascending = links.toSorted((a, b) => base(a) - base(b))
  let level = 0
  let below = 0
  for (const [index, link] of ascending.entries()) {
    below += base(link)
    level = (bytes + below) / (index + 1)
    const next = ascending[index + 1]
    if (next === undefined || level <= base(next)) break
  }
  let moved = 0
  for (const link of links) {
    const before = quotas.get(link) ?? 0
    const now = Math.max(0, level - base(link))
    loads.set(link, base(link) + now)
    quotas.set(link, now)
    moved += Math.abs(now - before)
  }
  return moved
}

/** The first of those that have most. */
function most(of: readonly number[], value: (one: number) => number): number {
  return of.reduce((best, one) => (value(one) > value(best) ? one : best))
}
