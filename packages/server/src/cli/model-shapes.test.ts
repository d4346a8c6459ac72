import { expect, test } from 'bun:test'
import { MODEL_NAMES, modelTensors, quantizedExperts } from './model-shapes.ts'
import { tensorBytes } from './write-checkpoint.ts'

const bytesOf = (tensors: ReturnType<typeof quantizedExperts>) =>
  tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0)

// of the published checkpoints: tensors, and bytes as far as they are told
test.each([
  ['qwen3-8b', 399, 16.4],
  ['qwen3-30b-a3b', 18_867, 61.1],
  ['llama-3-70b', 723, 141.1],
  ['glm-4.5-air', 18_329, 221],
  ['qwen3-235b-a22b', 36_945, 470],
  ['deepseek-v3.1', 91_991, 689],
  ['kimi-k2', 139_583, 1029],
] as const)('%s has %d tensors of %d GB', (model, count, gb) => {
  const tensors = modelTensors(model)
  expect(tensors).toHaveLength(count)
  expect(Math.abs(bytesOf(tensors) / (gb * 1e9) - 1)).toBeLessThan(0.003)
})

test.each(MODEL_NAMES)('the names of %s differ, and its blocks have scales', (model) => {
  const tensors = modelTensors(model)
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  expect(byName.size).toBe(tensors.length)
  for (const { name, dtype, shape } of tensors) {
    const scales = byName.get(`${name}_scale_inv`)?.shape
    const wanted = dtype === 'F8_E4M3' ? shape.map((length) => Math.ceil(length / 128)) : undefined
    expect(scales).toEqual(wanted)
  }
})

test('quantised experts', () => {
  expect([quantizedExperts().length, bytesOf(quantizedExperts())]).toEqual([18_432, 14_499_053_568])
})
