import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { divide, type PieceSet, takeLink } from './quotas.ts'

const LINKS_MAX = 8

interface Instance {
  readonly sets: readonly (PieceSet & { readonly pieces: readonly number[] })[]
  readonly others: ReadonlyMap<number, number>
}

/** Sets of pieces of some links each, and what the links carry beside them. */
const instances = fc
  .record({
    links: fc.uniqueArray(fc.integer({ min: 1, max: 2 ** LINKS_MAX - 1 }), { maxLength: 40 }),
    others: fc.array(fc.integer({ min: 0, max: 3000 }), {
      minLength: LINKS_MAX,
      maxLength: LINKS_MAX,
    }),
    pieces: fc.array(fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 12 }), {
      minLength: 40,
      maxLength: 40,
    }),
  })
  .map(({ links, others, pieces }): Instance => {
    const sets = links.map((bits, index) => {
      const own = pieces[index] as number[]
      const of = Array.from({ length: LINKS_MAX }, (_, link) => link)
      const bytes = own.reduce((sum, one) => sum + one, 0)
      return { links: of.filter((link) => (bits >> link) % 2 === 1), bytes, pieces: own }
    })
    return { sets, others: new Map(others.entries()) }
  })

test('what is divided is all there, and each link may exceed its quota in one set at most', () => {
  fc.assert(
    fc.property(instances, ({ sets, others }) => {
      const inexact = new Set<number>()
      for (const [index, { left, exact, links }] of divide(sets, others).entries()) {
        const sum = [...left.values()].reduce((a, b) => a + b, 0)
        expect(sum).toBeCloseTo(sets[index]!.bytes, 6)
        expect(links).toContain(exact)
        for (const [link, bytes] of left) {
          expect(links).toContain(link)
          expect(bytes).toBeGreaterThan(0)
          if (link === exact) continue
          expect(inexact.has(link)).toBe(false)
          inexact.add(link)
        }
      }
    }),
  )
})

test('the exact link is given no more than its quota, each of the others less than one piece more', () => {
  fc.assert(
    fc.property(instances, ({ sets, others }) => {
      for (const [index, quotas] of divide(sets, others).entries()) {
        const first = new Map(quotas.left)
        for (const bytes of sets[index]!.pieces) {
          const link = takeLink(quotas, bytes)
          expect(quotas.left.get(link)!).toBeLessThan(first.get(link)!)
        }
        const largest = Math.max(...sets[index]!.pieces)
        for (const [link, bytes] of quotas.left) {
          expect(bytes).toBeGreaterThan(link === quotas.exact ? -1e-6 : -largest)
        }
      }
    }),
  )
})

test('the largest load is that of the links that cannot give theirs to others', () => {
  fc.assert(
    fc.property(instances, ({ sets, others }) => {
      const loads = new Map(others)
      for (const { left } of divide(sets, others)) {
        for (const [link, bytes] of left) loads.set(link, (loads.get(link) ?? 0) + bytes)
      }
      let must = 0
      for (let of = 1; of < 2 ** LINKS_MAX; of++) {
        const among = (link: number) => (of >> link) % 2 === 1
        const inside = sets.filter(({ links }) => links.every(among))
        const carried = [...others].filter(([link]) => among(link)).map(([, bytes]) => bytes)
        const all = [...carried, ...inside.map(({ bytes }) => bytes)].reduce((a, b) => a + b, 0)
        must = Math.max(must, all / carried.length)
      }
      expect(Math.max(...loads.values())).toBeLessThan(must * 1.001 + 1)
      expect(Math.max(...loads.values())).toBeGreaterThan(must - 1e-6)
    }),
  )
})
