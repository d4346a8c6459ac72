import { describe, expect, test } from 'bun:test'
import { planDirect } from '@ckpt/core'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { engineParameters, parameterBytes } from './engine-parameters.ts'
import { layOut } from './models.ts'
import { parameterMap } from './parameter-map.ts'
import { takeRows } from './placed-bytes.ts'

const ATTENTION = 'model.layers.0.self_attn'
const EXPERTS = 'model.layers.0.mlp.experts'

/** Two experts with six blocks of scales of which none divides among eight ranks, as those of the model `moe`. */
const TENSORS: readonly TensorShape[] = [
  bf16('model.embed_tokens.weight', 64, 16),
  bf16(`${ATTENTION}.q_proj.weight`, 32, 16),
  bf16(`${ATTENTION}.k_proj.weight`, 8, 16),
  bf16(`${ATTENTION}.v_proj.weight`, 8, 16),
  bf16(`${ATTENTION}.o_proj.weight`, 16, 32),
  bf16(`${ATTENTION}.q_norm.weight`, 4),
  bf16('model.layers.1.mlp.gate_proj.weight', 24, 16),
  bf16('model.layers.1.mlp.up_proj.weight', 24, 16),
  bf16('model.layers.1.mlp.down_proj.weight', 16, 24),
  ...[0, 1].flatMap((expert) => [
    ...quantized(`${EXPERTS}.${expert}.gate_proj.weight`, [48, 16], [6, 2]),
    ...quantized(`${EXPERTS}.${expert}.up_proj.weight`, [48, 16], [6, 2]),
    ...quantized(`${EXPERTS}.${expert}.down_proj.weight`, [16, 48], [2, 6]),
  ]),
  bf16('lm_head.weight', 64, 16),
]
/** In reverse, so that nothing follows from the order of the parameters. */
const CHECKPOINT = layOut('small', TENSORS.toReversed())
const SOURCE_BYTES = CHECKPOINT.sources[0]!.bytes[0]!

function bf16(name: string, ...shape: number[]): TensorShape {
  return { name, dtype: 'BF16', shape }
}

function quantized(name: string, shape: number[], scales: number[]): TensorShape[] {
  return [
    { name, dtype: 'F8_E4M3', shape },
    { name: `${name}_scale_inv`, dtype: 'F32', shape: scales },
  ]
}

function mapOf(rank: number, ranks: number, allocationBytes?: number) {
  return parameterMap(TENSORS, engineParameters(TENSORS, rank, ranks), allocationBytes)
}

/** Of each allocation where its bytes come from in the source space; -1: nothing belongs there. No byte is placed twice. */
function placed(rank: number, ranks: number, allocationBytes?: number): Int32Array[] {
  const map = mapOf(rank, ranks, allocationBytes)
  return map.allocationBytes.map((bytes, allocation) => {
    const origins = new Int32Array(bytes).fill(-1)
    takeRows(map, CHECKPOINT.table, allocation, (from, at, count) => {
      for (let i = 0; i < count; i++) {
        if (origins[at + i] !== -1) throw new Error(`byte ${at + i} is placed twice`)
        origins[at + i] = from + i
      }
    })
    return origins
  })
}

/** How many ranks hold each byte of a tensor. */
function holders(name: string, ranks: number): Set<number> {
  const counts = new Uint8Array(SOURCE_BYTES)
  for (let rank = 0; rank < ranks; rank++) {
    for (const origins of placed(rank, ranks)) {
      for (const from of origins) if (from >= 0) counts[from]!++
    }
  }
  const { names, offsets, bytes } = CHECKPOINT.table
  const row = names.indexOf(name)
  return new Set(counts.subarray(offsets[row]!, offsets[row]! + bytes[row]!))
}

/** Where a parameter's bytes begin in the only allocation. */
function beginOf(parameter: string, rank: number, ranks: number): number {
  let begin = 0
  for (const one of engineParameters(TENSORS, rank, ranks)) {
    if (one.name === parameter) return begin
    begin = Math.ceil((begin + parameterBytes(one)) / 512) * 512
  }
  throw new Error(`there is no parameter ${parameter}`)
}

/** Where an element of a tensor lies in the source space. */
function elementAt(name: string, index: number, elementBytes: number): number {
  const { names, offsets } = CHECKPOINT.table
  return offsets[names.indexOf(name)]! + index * elementBytes
}

describe('the parameters of an engine', () => {
  test.each([1, 2, 8])(
    '%d ranks: each byte is placed once, and what is between is no more than alignment',
    (ranks) => {
      for (let rank = 0; rank < ranks; rank++) {
        for (const allocationBytes of [undefined, 2048]) {
          const bytes = engineParameters(TENSORS, rank, ranks).reduce(
            (sum, parameter) => sum + parameterBytes(parameter),
            0,
          )
          const allocations = placed(rank, ranks, allocationBytes)
          expect(allocations.length === 1).toBe(allocationBytes === undefined)
          const held = allocations.flatMap((origins) =>
            Array.from(origins).filter((from) => from >= 0),
          )
          expect(held.length).toBe(bytes)
          expect(new Set(held).size).toBe(bytes)
          for (const origins of allocations) {
            for (let at = 0; at < origins.length; at++) {
              if (origins[at] === -1 && at % 512 === 0) throw new Error(`nothing is at ${at}`)
            }
          }
        }
      }
    },
  )

  test.each([1, 2, 8])('%d ranks together hold every sliced byte once, and norms each', (ranks) => {
    for (const { name } of TENSORS) {
      const found = holders(name, ranks)
      if (name.includes('_norm')) expect(found).toEqual(new Set([ranks]))
      // a block of scales that two ranks' slices touch is on both
      else if (name.includes('scale') && ranks === 8) expect(found).toEqual(new Set([2]))
      else expect(found).toEqual(new Set([1]))
    }
  })

  test('fused ones have q, k and v, or gate and up, one after another', () => {
    const [origins] = placed(3, 8)
    const at = beginOf(`${ATTENTION}.qkv_proj.weight`, 3, 8)
    const rowBytes = 16 * 2
    expect(origins![at]).toBe(elementAt(`${ATTENTION}.q_proj.weight`, 3 * 4 * 16, 2))
    expect(origins![at + 4 * rowBytes]).toBe(elementAt(`${ATTENTION}.k_proj.weight`, 3 * 16, 2))
    expect(origins![at + 5 * rowBytes]).toBe(elementAt(`${ATTENTION}.v_proj.weight`, 3 * 16, 2))
    const up = beginOf('model.layers.1.mlp.gate_up_proj.weight', 3, 8) + 3 * rowBytes
    expect(origins![up]).toBe(elementAt('model.layers.1.mlp.up_proj.weight', 3 * 3 * 16, 2))
  })

  test('w13 is [experts, 2 * intermediate / ranks, hidden], w2 [experts, hidden, intermediate / ranks]', () => {
    const [origins] = placed(5, 8)
    const w13 = beginOf(`${EXPERTS}.w13_weight`, 5, 8)
    const w2 = beginOf(`${EXPERTS}.w2_weight`, 5, 8)
    for (let expert = 0; expert < 2; expert++) {
      for (let row = 0; row < 12; row++) {
        const part = row < 6 ? 'gate' : 'up'
        const index = (5 * 6 + (row % 6)) * 16 + 7
        const from = elementAt(`${EXPERTS}.${expert}.${part}_proj.weight`, index, 1)
        expect(origins![w13 + (expert * 12 + row) * 16 + 7]).toBe(from)
      }
      for (let row = 0; row < 16; row++) {
        const from = elementAt(`${EXPERTS}.${expert}.down_proj.weight`, row * 48 + 5 * 6 + 1, 1)
        expect(origins![w2 + (expert * 16 + row) * 6 + 1]).toBe(from)
      }
    }
  })

  test('scales of slices that cut blocks: those of every block that is touched', () => {
    // of 6 blocks of 8 rows each, rank 1 of 8 has rows 6 to 11
    const [origins] = placed(1, 8)
    const at = beginOf(`${EXPERTS}.w13_weight_scale_inv`, 1, 8)
    const gate = `${EXPERTS}.0.gate_proj.weight_scale_inv`
    const up = `${EXPERTS}.0.up_proj.weight_scale_inv`
    expect(origins![at]).toBe(elementAt(gate, 0, 4))
    expect(origins![at + 2 * 8]).toBe(elementAt(up, 0, 4))
    expect(origins![at + 4 * 8]).toBe(elementAt(gate.replace('.0.gate', '.1.gate'), 0, 4))
  })

  test.each([1, 8])('with %d ranks a direct update has a plan for all of them', (ranks) => {
    for (let rank = 0; rank < ranks; rank++) {
      const plan = planDirect(mapOf(rank, ranks), CHECKPOINT.table, CHECKPOINT.sources)
      const held = placed(rank, ranks).reduce(
        (sum, origins) => sum + origins.filter((from) => from >= 0).length,
        0,
      )
      expect(plan).toMatchObject({ bytes: held })
    }
  })
})
