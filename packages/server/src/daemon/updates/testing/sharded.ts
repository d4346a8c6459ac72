/** Tensors that engines' ranks split in every way, and what each rank then holds. */
import { expect } from 'bun:test'
import type { RunningEngine } from '../../../engines/reference/index.ts'
import type { ShardedBy } from '../../../engines/reference/shard.ts'
import { pattern, type TestTensor, type TestTensors } from '../../registry/testing/fixture.ts'
import { weightsOf } from './fixture.ts'

const ITEM_BYTES: Readonly<Record<string, number>> = { BF16: 2, F32: 4, I8: 1, U8: 1 }
const NAMES = ['q_proj', 'o_proj', 'experts.3.w1', 'experts.4.w2', 'mlp.down_proj', 'norm']

/** Of every number of dimensions, and of lengths that the ranks divide and that they do not; others for another layout. */
export function randomTensors(layout: number, seed: number): TestTensors {
  let state = layout
  const below = (limit: number) => {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31
    return Math.floor((state / 2 ** 31) * limit)
  }
  const tensors: Record<string, TestTensor> = {}
  for (let i = 0; i < 40; i++) {
    const name = `layers.${i}.${NAMES[below(NAMES.length)]}.weight`
    const dtype = Object.keys(ITEM_BYTES)[below(3)] as string
    const shape = Array.from({ length: below(4) }, () => [1, 12, 24, 36, 50][below(5)] as number)
    const bytes = shape.reduce((product, length) => product * length, ITEM_BYTES[dtype] as number)
    tensors[name] = { dtype, shape, bytes: pattern(bytes, seed * 1000 + i) }
  }
  return tensors
}

/** Element by element. */
function partOf(name: string, tensor: TestTensor, by: ShardedBy, rank: number, size: number) {
  const { dtype, shape, bytes } = tensor
  if (by === 'experts' && name.includes('experts.')) {
    const expert = name.includes('experts.3.') ? 3 : 4
    return expert % size === rank
      ? { shape, bytes }
      : { shape: [0, ...shape.slice(1)], bytes: new Uint8Array(0) }
  }
  const isMixed = by === 'mixed' || by === 'experts'
  const columns = by === 'columns' || (isMixed && /o_proj|down_proj|w2/.test(name))
  const dimension = columns ? 1 : 0
  const length = shape[dimension]
  if (length === undefined || length % size !== 0) return { shape, bytes }
  const itemBytes = ITEM_BYTES[dtype] as number
  const inner = shape.slice(dimension + 1).reduce((product, one) => product * one, 1)
  const own: number[] = []
  for (let element = 0; element < bytes.length / itemBytes; element++) {
    const index = Math.floor(element / inner) % length
    if (Math.floor((index * size) / length) !== rank) continue
    for (let byte = 0; byte < itemBytes; byte++) own.push(bytes[element * itemBytes + byte]!)
  }
  return { shape: shape.with(dimension, length / size), bytes: Uint8Array.from(own) }
}

/** Throws unless each rank of the engine holds its part of every tensor. */
export async function requireParts(engine: RunningEngine, tensors: TestTensors, by: ShardedBy) {
  const { ranks, torn } = await weightsOf(engine)
  expect(torn).toBe(false)
  for (const [rank, { tensors: held }] of ranks.entries()) {
    const wanted = Object.entries(tensors).map(([name, tensor]) => {
      const { shape, bytes } = partOf(name, tensor, by, rank, ranks.length)
      const sha256 = new Bun.CryptoHasher('sha256').update(bytes).digest('hex')
      return [name, { dtype: tensor.dtype, shape, sha256 }]
    })
    expect(held).toEqual(Object.fromEntries(wanted))
  }
}
