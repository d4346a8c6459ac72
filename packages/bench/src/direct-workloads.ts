import { modelTensors, quantizedExperts, type TensorShape } from 'ckpt/cli/model-shapes'
import { tensorBytes } from 'ckpt/cli/write-checkpoint'
import { sizeName } from './bench.ts'
import { type Workload, type WorkloadModel, workloads } from './workloads.ts'

/** What both models have of the shapes of a dense layer, in every dimension, when they are cut to a size. */
const NARROWER = 8
/** In place of 151,936 words, which would be more than all layers of a small size. */
const WORDS = 2048
/** Weight and scale of gate, up and down. */
const TENSORS_OF_EXPERT = 6

/** A model, or one that is cut to a size. */
export interface DirectWorkload extends Workload {
  readonly kind: WorkloadModel
}

/** The models, or without any both of them cut to each size. */
export function directWorkloads(
  sizes: readonly number[],
  models: readonly string[],
): DirectWorkload[] {
  if (models.length > 0) {
    return workloads(sizes, models).map((one) => ({
      ...one,
      kind: one.name as WorkloadModel,
    }))
  }
  return sizes.flatMap((bytes) => [
    { name: `${sizeName(bytes)} dense`, kind: 'dense', tensors: narrowDense(bytes), model: false },
    { name: `${sizeName(bytes)} moe`, kind: 'moe', tensors: firstExperts(bytes), model: false },
  ])
}

/** Qwen3-8B's layers with an eighth of every dimension, as many as fit. */
function narrowDense(bytes: number): TensorShape[] {
  const whole = modelTensors('qwen3-8b')
  const first = 'model.layers.0.'
  const narrow = ({ name, dtype, shape }: TensorShape): TensorShape => ({
    name,
    dtype,
    shape: shape.map((dimension) => dimension / NARROWER),
  })
  const layer = whole.filter(({ name }) => name.startsWith(first)).map(narrow)
  const around = whole
    .filter(({ name }) => !name.startsWith('model.layers.'))
    .map(narrow)
    .map((one) => (one.shape.length === 1 ? one : { ...one, shape: [WORDS, one.shape[1] ?? 1] }))
  const count = Math.max(1, Math.floor((bytes - bytesOf(around)) / bytesOf(layer)))
  const layers = Array.from({ length: count }, (_, index) =>
    layer.map((one) => ({ ...one, name: one.name.replace(first, `model.layers.${index}.`) })),
  )
  return [...around, ...layers.flat()]
}

/** With their own shapes, as many as fit: their scales have 384 bytes in any size. */
function firstExperts(bytes: number): TensorShape[] {
  const all = quantizedExperts()
  const ofOne = bytesOf(all.slice(0, TENSORS_OF_EXPERT))
  return all.slice(0, Math.max(1, Math.floor(bytes / ofOne)) * TENSORS_OF_EXPERT)
}

function bytesOf(tensors: readonly TensorShape[]): number {
  return tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0)
}
