import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { Digest } from './digest.ts'

test('is MurmurHash3_x86_128', () => {
  // the vector of murmurhash3js-revisited (mmh3 5 agrees), whose 44 bytes are 11 words; of the
  // empty stream, 0
  const text = 'I will not buy this record, it is scratched.'
  const view = new DataView(new TextEncoder().encode(text).buffer)
  const digest = new Digest()
  for (let i = 0; i < text.length; i += 4) digest.word(view.getUint32(i, true))
  expect(digest.hex()).toBe('a0a9683b25ac5e40d9af2895890dddf5')
  expect(new Digest().hex()).toBe('0'.repeat(32))
})

const digestOf = (add: (digest: Digest) => void) => {
  const digest = new Digest()
  add(digest)
  return digest.hex()
}

test('tells streams apart', () => {
  const words = fc.array(fc.integer(), { maxLength: 9 })
  fc.assert(
    fc.property(words, words, (a, b) => {
      const equal = JSON.stringify(a) === JSON.stringify(b)
      expect(digestOf((d) => d.words(a)) === digestOf((d) => d.words(b))).toBe(equal)
    }),
  )
  const texts = fc.array(fc.string({ unit: 'binary', maxLength: 3 }), { maxLength: 3 })
  fc.assert(
    fc.property(texts, texts, (a, b) => {
      const equal = JSON.stringify(a) === JSON.stringify(b)
      const hex = (list: string[]) => digestOf((d) => list.forEach((text) => d.string(text)))
      expect(hex(a) === hex(b)).toBe(equal)
    }),
  )
})

test('sees every bit of a number', () => {
  const numbers = [0, 1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, 2 ** 52, 2 ** 53 - 1]
  expect(new Set(numbers.map((n) => digestOf((d) => d.number(n)))).size).toBe(numbers.length)
})
