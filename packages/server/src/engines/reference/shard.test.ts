import { expect, test } from 'bun:test'
import { dtypeIndex } from '@ckpt/core'
import fc from 'fast-check'
import { SHARDED_BY, type ShardedBy, shardOf } from './shard.ts'

const BF16 = dtypeIndex('BF16')

function shard(
  dtype: number,
  shape: readonly number[],
  by: ShardedBy,
  rank: number,
  size: number,
  name = 'w',
) {
  return shardOf({ name, dtype, shape }, { by, rank, size })
}

const runs = (offset: number, width: number, pitch: number, height: number) => ({
  offset,
  width,
  pitch,
  height,
  bytes: width * height,
})

test('rows where the size divides them, the whole tensor otherwise', () => {
  const rows = (shape: readonly number[], rank: number) => shard(BF16, shape, 'rows', rank, 4)
  expect(rows([8, 3], 1)).toEqual({ shape: [2, 3], ...runs(12, 12, 48, 1) })
  expect(rows([7, 3], 1)).toEqual({ shape: [7, 3], ...runs(0, 42, 42, 1) })
  expect(rows([], 1)).toEqual({ shape: [], ...runs(0, 2, 2, 1) })
  expect(rows([0, 5], 3)).toEqual({ shape: [0, 5], ...runs(0, 0, 0, 1) })
})

test('columns where the size divides them', () => {
  const columns = (...shape: number[]) => shard(BF16, shape, 'columns', 1, 4)
  expect(columns(3, 8)).toEqual({ shape: [3, 2], ...runs(4, 4, 16, 3) })
  expect(columns(3, 8, 5)).toEqual({ shape: [3, 2, 5], ...runs(20, 20, 80, 3) })
  expect(columns(8, 3)).toEqual({ shape: [8, 3], ...runs(0, 48, 48, 1) })
  expect(columns(8)).toEqual({ shape: [8], ...runs(0, 16, 16, 1) })
})

test('mixed: columns of what projects back, rows of the others', () => {
  const mixed = (name: string) => shard(BF16, [4, 4], 'mixed', 1, 2, name)?.shape
  expect(mixed('layers.0.self_attn.o_proj.weight')).toEqual([4, 2])
  expect(mixed('layers.0.mlp.experts.1.w2.weight')).toEqual([4, 2])
  expect(mixed('layers.0.self_attn.q_proj.weight')).toEqual([2, 4])
  expect(mixed('layers.0.no_projection')).toEqual([2, 4])
})

test('experts: each is whole on one rank, all else is mixed', () => {
  const nothing = { shape: [0, 4], ...runs(0, 0, 0, 0) }
  for (const [expert, owner] of [
    [0, 0],
    [1, 1],
    [5, 1],
    [63, 3],
  ] as const) {
    const name = `layers.7.mlp.experts.${expert}.down_proj.weight`
    const parts = [0, 1, 2, 3].map((rank) => shard(BF16, [8, 4], 'experts', rank, 4, name))
    const whole = { shape: [8, 4], ...runs(0, 64, 64, 1) }
    expect(parts).toEqual(parts.map((_, rank) => (rank === owner ? whole : nothing)))
  }
  const other = (name: string) => shard(BF16, [4, 4], 'experts', 1, 2, name)?.shape
  expect(other('layers.0.self_attn.o_proj.weight')).toEqual([4, 2])
  expect(other('layers.0.mlp.shared_experts.up_proj.weight')).toEqual([2, 4])
  expect(other('layers.0.mlp.gate.weight')).toEqual([2, 4])
  expect(shard(BF16, [], 'experts', 1, 2, 'experts.0.scale')?.bytes).toBe(0)
})

test('packed elements: what is not whole bytes stays together', () => {
  const F4 = dtypeIndex('F4')
  expect(shard(F4, [4], 'rows', 1, 2)).toEqual({ shape: [2], ...runs(1, 1, 2, 1) })
  expect(shard(F4, [2], 'rows', 1, 2)).toEqual({ shape: [2], ...runs(0, 1, 1, 1) })
  expect(shard(F4, [3, 2], 'columns', 1, 2)).toEqual({ shape: [3, 2], ...runs(0, 3, 3, 1) })
  expect(shard(F4, [3], 'rows', 0, 2)).toBeNull()
})

test('the shards of all ranks are the tensor, or each of them is', () => {
  const shapes = fc.array(fc.nat(12), { maxLength: 4 })
  const sizes = fc.integer({ min: 1, max: 8 })
  const ways = fc.constantFrom(...SHARDED_BY)
  const names = fc.oneof(
    fc.constantFrom('q_proj', 'o_proj'),
    fc.nat(20).map((expert) => `experts.${expert}.w2`),
  )
  fc.assert(
    fc.property(shapes, sizes, ways, names, (shape, size, by, name) => {
      const bytes = shape.reduce((product, dimension) => product * dimension, 2)
      const parts = Array.from({ length: size }, (_, rank) => {
        return shard(BF16, shape, by, rank, size, name)!
      })
      const split = parts.some((part) => part.bytes < bytes)
      const times = new Uint8Array(bytes)
      for (const { offset, width, pitch, height, shape: own } of parts) {
        expect(own.reduce((product, dimension) => product * dimension, 2)).toBe(width * height)
        for (let row = 0; row < height; row++) {
          const begin = offset + row * pitch
          expect(begin + width).toBeLessThanOrEqual(bytes)
          for (let at = begin; at < begin + width; at++) times[at]!++
        }
      }
      expect(times.every((count) => count === (split ? 1 : size))).toBe(true)
    }),
  )
})
