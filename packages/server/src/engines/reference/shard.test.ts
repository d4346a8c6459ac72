import { expect, test } from 'bun:test'
import { dtypeIndex } from '@ckpt/core'
import fc from 'fast-check'
import { shardOf } from './shard.ts'

const BF16 = dtypeIndex('BF16')

test('rows where the size divides them, the whole tensor otherwise', () => {
  expect(shardOf(BF16, [8, 3], 1, 4)).toEqual({ shape: [2, 3], offset: 12, bytes: 12 })
  expect(shardOf(BF16, [7, 3], 1, 4)).toEqual({ shape: [7, 3], offset: 0, bytes: 42 })
  expect(shardOf(BF16, [], 1, 4)).toEqual({ shape: [], offset: 0, bytes: 2 })
  expect(shardOf(BF16, [0, 5], 3, 4)).toEqual({ shape: [0, 5], offset: 0, bytes: 0 })
})

test('packed elements: rows that are not whole bytes stay together', () => {
  const F4 = dtypeIndex('F4')
  expect(shardOf(F4, [4], 1, 2)).toEqual({ shape: [2], offset: 1, bytes: 1 })
  expect(shardOf(F4, [2], 1, 2)).toEqual({ shape: [2], offset: 0, bytes: 1 })
  expect(shardOf(F4, [3], 0, 2)).toBeNull()
})

test('the shards of all ranks are the tensor', () => {
  const shapes = fc.array(fc.nat(12), { maxLength: 4 })
  fc.assert(
    fc.property(shapes, fc.integer({ min: 1, max: 8 }), (shape, size) => {
      const bytes = shape.reduce((product, dimension) => product * dimension, 2)
      const shards = Array.from({ length: size }, (_, rank) => shardOf(BF16, shape, rank, size))
      const rows = shape[0]
      if (rows === undefined || rows % size !== 0) {
        expect(shards.every((shard) => shard?.offset === 0 && shard.bytes === bytes)).toBe(true)
        return
      }
      let end = 0
      for (const shard of shards) {
        expect(shard?.bytes === 0 || shard?.offset === end).toBe(true)
        end += shard?.bytes ?? 0
      }
      expect(end).toBe(bytes)
    }),
  )
})
