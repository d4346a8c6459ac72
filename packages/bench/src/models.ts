import {
  arrange,
  buildTable,
  decideMode,
  dtypeIndex,
  makePlan,
  type Plan,
  type SourceSpace,
  type TensorTable,
  tensorBytes,
} from '@ckpt/core'
import { modelTensors, type TensorShape } from 'ckpt/cli/model-shapes'

const GIB = 2 ** 30
/** Of one host, with this much free memory each: what the planner is told. */
const RANKS = [0, 1, 2, 3, 4, 5, 6, 7]
const FREE_BYTES = 64 * GIB

/** A checkpoint as the planner sees it: no bytes, only where they would lie. */
export interface Model {
  readonly name: string
  readonly table: TensorTable
  readonly sources: readonly SourceSpace[]
  readonly bytes: number
}

const SHAPES: Readonly<Record<string, () => TensorShape[]>> = {
  '399 tensors, dense': () => modelTensors('qwen3-8b'),
  '18432 tensors, experts': () =>
    modelTensors('qwen3-30b-a3b').filter(({ name }) => name.includes('.mlp.experts.')),
  '140000 tensors, experts': manyExperts,
}

const laidOut = new Map<string, Model>()

/** The models that are planned, each laid out when it is asked for. */
export function* models(): Generator<Model> {
  for (const [name, shapes] of Object.entries(SHAPES)) {
    const model = laidOut.get(name) ?? layOut(name, shapes())
    laidOut.set(name, model)
    yield model
  }
}

/** 140 layers of 500 experts with two matrices each. */
function manyExperts(): TensorShape[] {
  const tensors: TensorShape[] = []
  for (let layer = 0; layer < 140; layer++) {
    for (let expert = 0; expert < 500; expert++) {
      const prefix = `model.layers.${layer}.mlp.experts.${expert}`
      tensors.push({ name: `${prefix}.gate_up_proj.weight`, dtype: 'BF16', shape: [1024, 2048] })
      tensors.push({ name: `${prefix}.down_proj.weight`, dtype: 'BF16', shape: [2048, 512] })
    }
  }
  return tensors
}

/** One tensor after another in the memory of one daemon. */
export function layOut(name: string, tensors: readonly TensorShape[]): Model {
  const dtypes = tensors.map(({ dtype }) => dtypeIndex(dtype))
  const bytes = tensors.map(({ shape }, i) => tensorBytes(dtypes[i] as number, shape) ?? 0)
  const { offsets, totalBytes } = arrange(bytes)
  const rows = tensors.map((tensor, i) => ({
    name: tensor.name,
    shape: tensor.shape,
    dtype: dtypes[i] as number,
    bytes: bytes[i] as number,
    offset: offsets[i] as number,
    owner: 0,
  }))
  const sources = [{ starts: Float64Array.of(0), bytes: Float64Array.of(totalBytes) }]
  const sum = bytes.reduce((total, one) => total + one, 0)
  return { name, table: buildTable(rows), sources, bytes: sum }
}

/** What a daemon does to plan an update of the model: the mode, then the plan. */
export function planOf({ table, sources, bytes }: Model): Plan {
  const largest = largestOf(table.bytes)
  const decision = decideMode({
    freeBytes: RANKS.map((rank) => ({ rank, bytes: FREE_BYTES })),
    fraction: 0.9,
    largest: { name: table.names[largest] ?? '', bytes: table.bytes[largest] ?? 0 },
    totalBytes: bytes,
    tensorCount: table.names.length,
    ringBytes: null,
    bucketBytes: null,
    mode: 'auto',
  })
  if (decision.mode === 'refuse') throw new Error(decision.failure.message)
  return makePlan({ table, sources, ownerRanks: [RANKS], ...decision })
}

function largestOf(bytes: Float64Array): number {
  return bytes.reduce((best, one, i) => (one > (bytes[best] as number) ? i : best), 0)
}
