import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { naturalCompare, naturalOrder } from './natural-order.ts'

const sorted = (...names: string[]) => names.toSorted(naturalCompare)

test('compares numbers as numbers', () => {
  expect(sorted('layers.10.w', 'layers.2.w', 'layers.1.w')).toEqual([
    'layers.1.w',
    'layers.2.w',
    'layers.10.w',
  ])
  expect(sorted('b', 'a10b2', 'a10b10', 'a9', '', 'a')).toEqual([
    '',
    'a',
    'a9',
    'a10b2',
    'a10b10',
    'b',
  ])
  expect(sorted('x.100000000000000000000', 'x.99999999999999999999')[0]).toBe(
    'x.99999999999999999999',
  )
})

test('keeps names apart that differ in leading zeros only', () => {
  expect(sorted('a1', 'a01', 'a001')).toEqual(['a001', 'a01', 'a1'])
  expect(naturalCompare('a01b2', 'a1b1')).toBeGreaterThan(0)
  expect(naturalCompare('a0', 'a00')).not.toBe(0)
})

const name = fc.oneof(
  fc.stringMatching(/^[ab.]{0,2}\d{0,3}[ab.]?\d{0,2}$/),
  fc.string({ unit: 'binary', maxLength: 4 }),
)

/** A second way to compare: pieces that are either digits or one unit. */
function compareByPieces(a: string, b: string): number {
  const pieces = (text: string) => text.match(/\d+|[^]/g) ?? []
  const [x, y] = [pieces(a), pieces(b)]
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const [p, q] = [x[i] as string, y[i] as string]
    const numbers = /\d/.test(p) && /\d/.test(q)
    if (numbers && BigInt(p) !== BigInt(q)) return BigInt(p) < BigInt(q) ? -1 : 1
    // a number stands at the place of the digit 0
    const [s, t] = [/\d/.test(p) ? '0' : p, /\d/.test(q) ? '0' : q]
    if (!numbers && s !== t) return s < t ? -1 : 1
  }
  return x.length - y.length || (a < b ? -1 : a > b ? 1 : 0)
}

test('agrees with a comparison piece by piece', () => {
  fc.assert(
    fc.property(name, name, (a, b) => {
      expect(Math.sign(naturalCompare(a, b))).toBe(Math.sign(compareByPieces(a, b)))
    }),
    { numRuns: 3000 },
  )
})

test('is a total order, and naturalOrder sorts by it', () => {
  fc.assert(
    fc.property(fc.uniqueArray(name, { maxLength: 20 }), (names) => {
      const order = [...naturalOrder(names)].map((i) => names[i] as string)
      expect(order.toSorted()).toEqual(names.toSorted())
      for (let i = 1; i < order.length; i++) {
        for (let j = 0; j < i; j++) {
          expect(naturalCompare(order[j] as string, order[i] as string)).toBe(-1)
          expect(naturalCompare(order[i] as string, order[j] as string)).toBe(1)
        }
      }
    }),
  )
})
