import { modelTensors, quantizedExperts, type TensorShape } from 'ckpt/cli/model-shapes'
import { tensorBytes } from 'ckpt/cli/write-checkpoint'
import { sizeName, MIB } from './bench.ts'
import { layersOf } from './checkpoint.ts'

/** What an update moves. */
export interface Workload {
  /** `16 MiB`, `dense`. */
  readonly name: string
  readonly tensors: readonly TensorShape[]
  /** The tensors have a model's shapes and sizes, so what is measured says something about a model. */
  readonly model: boolean
}

const MODELS = {
  /** Qwen3-8B: 16.4 GB of bf16 in 399 tensors, the largest 1.24 GB. */
  dense: () => modelTensors('qwen3-8b'),
  /** 24 layers of 128 experts in FP8 with block scales: 14.5 GB in 18,432 tensors. */
  moe: quantizedExperts,
  /** The first 12 layers of Qwen3-30B-A3B, with 128 experts each: 16.2 GB of bf16 in 4,719 tensors. */
  'moe-bf16': () => modelTensors('qwen3-30b-a3b').filter(({ name }) => layerOf(name) < 12),
} as const

/** -1: in none. */
function layerOf(name: string): number {
  return Number(/^model\.layers\.(\d+)\./.exec(name)?.[1] ?? -1)
}

export type WorkloadModel = keyof typeof MODELS

export const WORKLOAD_MODELS = Object.keys(MODELS)

/** The models, or without any a workload of each size. */
export function workloads(sizes: readonly number[], models: readonly string[]): Workload[] {
  if (models.length === 0) {
    return sizes.map((bytes) => ({ name: sizeName(bytes), tensors: layersOf(bytes), model: false }))
  }
  return models.map((name) => {
    const tensors = MODELS[name as keyof typeof MODELS]()
    return { name, tensors, model: true }
  })
}

/** Of all tensors together. */
export function workloadBytes({ tensors }: Workload): number {
  return tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0)
}

/** MiB of device memory that an update may take: 1 GiB, or the largest tensor and 256 MiB; a ring is a multiple of 2 MiB. */
export function deviceMibMost({ tensors }: Workload): number {
  const largest = tensors.reduce((most, tensor) => Math.max(most, tensorBytes(tensor)), 0)
  return Math.max(1024, 2 * Math.ceil((largest / MIB + 256) / 2))
}
