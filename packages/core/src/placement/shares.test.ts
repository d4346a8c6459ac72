import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { cutLarge } from './cut-copies.ts'
import type { DirectCopy } from './direct-copy.ts'
import { FRAGMENT_BYTES, FRAGMENT_BYTES_LEAST, type Fragments, fragment } from './fragments.ts'
import { planShares, type Share, type Sharer } from './shares.ts'

const KIB = 1024

function columns(of: readonly { source: number; bytes: number }[]): Fragments {
  return {
    count: of.length,
    owners: new Float64Array(of.length),
    sources: Float64Array.from(of, ({ source }) => source),
    bytes: Float64Array.from(of, ({ bytes }) => bytes),
    allocations: new Float64Array(of.length),
    destinations: Float64Array.from(of, ({ source }) => source),
  }
}

const RANKS_MAX = 10

/** Bits of those that need a piece: any, or two. */
const rank = fc.integer({ min: 0, max: RANKS_MAX - 1 })
const holders = fc.oneof(
  fc.integer({ min: 1, max: 2 ** RANKS_MAX - 1 }),
  fc.tuple(rank, rank).map(([a, b]) => (1 << a) | (1 << b)),
)

/** Pieces of any size, each needed by some of the ranks, which some links have in common. */
const instances = fc
  .record({
    links: fc.array(fc.integer({ min: 0, max: 7 }), { minLength: 1, maxLength: RANKS_MAX }),
    otherBytes: fc.oneof(
      fc.constant(Array<number>(RANKS_MAX).fill(0)),
      fc.array(fc.integer({ min: 0, max: 4_000 }), { minLength: RANKS_MAX, maxLength: RANKS_MAX }),
    ),
    pieces: fc.oneof(
      fc.array(fc.record({ bytes: fc.integer({ min: 1, max: 500 }), holders }), { maxLength: 120 }),
      // none is far smaller than another, and each set of ranks has several
      fc
        .array(fc.record({ bytes: fc.integer({ min: 1, max: 2 }), holders }), { maxLength: 30 })
        .map((sets) => [sets, sets, sets, sets].flat()),
    ),
  })
  .map(({ links, otherBytes, pieces }) => {
    const at = pieces.map((piece, i) => ({ ...piece, source: i * 1000 }))
    return links.map((link, rank): Sharer => {
      const own = at.filter(({ holders }) => (holders >> rank) % 2 === 1)
      return { link, otherBytes: otherBytes[rank] as number, fragments: columns(own) }
    })
  })

/** Bytes that each link carries. */
function loadsOf(sharers: readonly Sharer[], shares: readonly Share[]): Map<number, number> {
  const loads = new Map<number, number>()
  for (const [rank, { link, otherBytes, fragments }] of sharers.entries()) {
    const taken = new Set(shares[rank]!.taken.map((one) => one.fragment))
    const own = [...fragments.bytes].reduce((sum, bytes, i) => sum + (taken.has(i) ? 0 : bytes), 0)
    loads.set(link, (loads.get(link) ?? 0) + otherBytes + own)
  }
  return loads
}

/** Of the busiest link if pieces could be divided: whatever only some links can bring is on them. */
function fractionalOptimum(sharers: readonly Sharer[]): number {
  const links = [...new Set(sharers.map(({ link }) => link))]
  const pieces = new Map<number, { bytes: number; links: number }>()
  for (const { link, fragments } of sharers) {
    for (let i = 0; i < fragments.count; i++) {
      const known = pieces.get(fragments.sources[i]!) ?? { bytes: fragments.bytes[i]!, links: 0 }
      known.links |= 1 << links.indexOf(link)
      pieces.set(fragments.sources[i]!, known)
    }
  }
  let most = 0
  for (let set = 1; set < 1 << links.length; set++) {
    const size = links.filter((_, i) => (set >> i) % 2 === 1).length
    const other = sharers
      .filter(({ link }) => (set >> links.indexOf(link)) % 2 === 1)
      .reduce((sum, { otherBytes }) => sum + otherBytes, 0)
    const inside = [...pieces.values()].filter((piece) => (piece.links & ~set) === 0)
    most = Math.max(most, (other + inside.reduce((sum, { bytes }) => sum + bytes, 0)) / size)
  }
  return most
}

describe('what ranks take from each other', () => {
  test('each fragment is brought by one of those that need it, and the others take it from that one', () => {
    fc.assert(
      fc.property(instances, (sharers) => {
        const shares = planShares(sharers)
        const given = new Set(
          shares.flatMap((share, rank) => [...share.given].map((i) => `${rank} ${i}`)),
        )
        const asked = new Set<string>()
        for (const [rank, { taken }] of shares.entries()) {
          const own = sharers[rank]!.fragments
          expect(new Set(taken.map((one) => one.fragment)).size).toBe(taken.length)
          for (const { fragment: mine, from, theirs } of taken) {
            const other = sharers[from]!.fragments
            expect(from).not.toBe(rank)
            expect(other.sources[theirs]).toBe(own.sources[mine]!)
            expect(other.bytes[theirs]).toBe(own.bytes[mine]!)
            // who gives it does not take it from a third one
            expect(shares[from]!.taken.some((one) => one.fragment === theirs)).toBe(false)
            asked.add(`${from} ${theirs}`)
          }
        }
        expect(asked).toEqual(given)
        const pieces = new Map(
          sharers.flatMap(({ fragments: { sources, bytes } }) =>
            [...sources].map((source, i) => [source, bytes[i]!] as const),
          ),
        )
        const others = sharers.reduce((sum, { otherBytes }) => sum + otherBytes, 0)
        const carried = [...loadsOf(sharers, shares).values()].reduce((sum, one) => sum + one, 0)
        // every byte goes over one link once
        expect(carried).toBe(others + [...pieces.values()].reduce((sum, one) => sum + one, 0))
      }),
    )
  })

  test('the busiest link carries within 5 % and a largest fragment of what it must', () => {
    fc.assert(
      fc.property(instances, (sharers) => {
        const loads = [...loadsOf(sharers, planShares(sharers)).values()]
        const largest = Math.max(0, ...sharers.flatMap(({ fragments }) => [...fragments.bytes]))
        expect(Math.max(...loads)).toBeLessThanOrEqual(1.05 * fractionalOptimum(sharers) + largest)
      }),
      { numRuns: 1000 },
    )
  })

  test('with each two of eight having pieces in common, no link brings a part of many more', () => {
    const pairs = Array.from({ length: 8 }, (_, a) =>
      Array.from({ length: a }, (_, b) => [a, b] as const),
    ).flat()
    const pieces = pairs.flatMap((pair) => [pair, pair, pair, pair])
    const sharers = Array.from({ length: 8 }, (_, link): Sharer => {
      const own = pieces.flatMap((pair, source) =>
        pair.includes(link) ? [{ source, bytes: 1 }] : [],
      )
      return { link, otherBytes: 0, fragments: columns(own) }
    })
    // 112 of them
    expect(Math.max(...loadsOf(sharers, planShares(sharers)).values())).toBeLessThanOrEqual(15)
  })

  test('replicas take turns', () => {
    const one = columns(Array.from({ length: 8 }, (_, i) => ({ source: i, bytes: 10 })))
    const sharers = [0, 1].map((link) => ({ link, otherBytes: 0, fragments: one }))
    const [first, second] = planShares(sharers)
    expect([...first!.given]).toEqual([0, 2, 4, 6])
    expect(second!.taken).toEqual([0, 2, 4, 6].map((i) => ({ fragment: i, from: 0, theirs: i })))
    expect([...second!.given]).toEqual([1, 3, 5, 7])
  })
})

test('fragments of ranks that need the same are the same, wherever their copies begin', () => {
  const copy = (source: number, width: number, height = 1): DirectCopy => {
    const pitches = { sourcePitch: width, destinationPitch: width }
    return { owner: 0, source, allocation: 0, destination: source + 7, ...pitches, width, height }
  }
  const whole = fragment([copy(100, 3 * FRAGMENT_BYTES)], 0, 10)
  expect(
    whole.copies.map(({ source, destination, width }) => [source, destination, width]),
  ).toEqual([
    [100, 107, FRAGMENT_BYTES - 100],
    [FRAGMENT_BYTES, FRAGMENT_BYTES + 7, FRAGMENT_BYTES],
    [2 * FRAGMENT_BYTES, 2 * FRAGMENT_BYTES + 7, FRAGMENT_BYTES],
    [3 * FRAGMENT_BYTES, 3 * FRAGMENT_BYTES + 7, 100],
  ])
  // also when they were cut before, as those of a plan are
  const [early, late] = [5, 30].map((begin) => {
    const at = begin * 1024 * KIB
    const cut = cutLarge([copy(at, 1000 * 1024 * KIB - at)])
    return new Set(fragment(cut, 0, 1000).copies.map(({ source, width }) => `${source} ${width}`))
  })
  const apart = [...late!].filter((one) => !early!.has(one))
  expect(apart).toEqual([`${30 * 1024 * KIB} ${2 * 1024 * KIB}`])
  // what is small, or of rows, is none
  expect([...whole.fragments]).toEqual([0, 1, 2, -1])
  const rows = fragment([copy(0, 128 * KIB, 4), copy(FRAGMENT_BYTES, FRAGMENT_BYTES)], 5, 10)
  expect([...rows.fragments]).toEqual([-1, 5])
  expect([
    ...fragment([copy(0, FRAGMENT_BYTES), copy(FRAGMENT_BYTES, FRAGMENT_BYTES_LEAST)], 0, 1)
      .fragments,
  ]).toEqual([0, -1])
})
