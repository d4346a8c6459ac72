import { describe, expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import fc from 'fast-check'
import { pack, unpack } from './pack.ts'

const arrays = fc.oneof(
  fc.uint8Array({ maxLength: 20 }),
  fc.uint32Array({ maxLength: 5 }),
  fc.int32Array({ maxLength: 5 }),
  fc.float64Array({ maxLength: 5 }),
)
const { value: values } = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 5 },
    fc.string(),
    fc.integer(),
    fc.boolean(),
    fc.constant(null),
    arrays,
    fc.array(tie('value'), { maxLength: 4 }),
    fc.dictionary(fc.string({ minLength: 1, unit: 'grapheme-ascii' }), tie('value'), {
      maxKeys: 4,
      noNullPrototype: true,
    }),
  ),
}))

describe('pack', () => {
  test('what was packed comes back, over JSON and copied bytes', () => {
    fc.assert(
      fc.property(values, (value) => {
        const { body, parts } = pack(value)
        const told = JSON.parse(JSON.stringify(body))
        expect(unpack({ body: told, parts: parts.map((part) => part.slice()) })).toEqual(value)
      }),
    )
  })

  test('bytes at an odd place are read as well', () => {
    const { body, parts } = pack(Float64Array.of(1, 2))
    const shifted = new Uint8Array(17)
    shifted.set(parts[0] as Uint8Array, 1)
    expect(unpack({ body, parts: [shifted.subarray(1)] })).toEqual(Float64Array.of(1, 2))
  })

  test('leaves undefined fields out and refuses what is no message', () => {
    expect(pack({ a: undefined, b: 1 }).body).toEqual({ b: 1 })
    const deep = Array.from({ length: 40 }).reduce<unknown>((inner) => [inner], 1)
    for (const odd of [new Map(), Number.NaN, 1n, () => {}, new BigInt64Array(1), deep]) {
      expect(() => pack({ odd })).toThrow(TypeError)
    }
    expect(() => pack({ $array: 'Uint8Array' })).toThrow(TypeError)
  })

  test('refuses bodies that it has not made', () => {
    const parts = [new Uint8Array(3)]
    for (const odd of [
      { $array: 'BigInt64Array', part: 0 },
      { $array: 'constructor', part: 0 },
      { $array: 'Uint8Array', part: 1 },
      { $array: 'Uint8Array', part: 'length' },
      { $array: 'Uint32Array', part: 0 },
    ]) {
      expect(() => unpack({ body: [odd], parts })).toThrow(CkptError)
    }
  })
})
