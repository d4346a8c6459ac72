import type { TensorShape } from 'ckpt/cli/model-shapes'
import { tensorBytes } from 'ckpt/cli/write-checkpoint'

/** What a rank holds of one tensor: rows of `width` bytes, `pitch` bytes apart in the tensor and without a gap in the parameter. */
export interface TensorPart {
  /** Index into the tensors. */
  readonly tensor: number
  readonly source: number
  readonly width: number
  readonly pitch: number
  readonly height: number
}

/** One parameter of an engine worker: its parts lie one behind another. */
export interface EngineParameter {
  readonly name: string
  readonly parts: readonly TensorPart[]
}

/** Several tensors in one parameter, in the order in which the checkpoint's list has them: q, k, v; gate, up; expert by expert. */
const FUSED: readonly (readonly [RegExp, string])[] = [
  [/\.[qkv]_proj\./, '.qkv_proj.'],
  [/\.mlp\.experts\.\d+\.(gate|up)_proj\./, '.mlp.experts.w13_'],
  [/\.mlp\.experts\.\d+\.down_proj\./, '.mlp.experts.w2_'],
  [/\.mlp\.(gate|up)_proj\./, '.mlp.gate_up_proj.'],
]
const ROWS_SLICED = /\.([qkv]|gate|up)_proj\.|embed_tokens\.|lm_head\./
const COLUMNS_SLICED = /\.(o|down)_proj\./

/**
 * The parameters of one rank as vLLM lays them out: `QKVParallelLinear` and `MergedColumnParallelLinear` fuse and slice rows,
 * `RowParallelLinear` slices columns, `FusedMoE` has `w13_weight` [experts, 2 * intermediate / ranks, hidden] and `w2_weight`
 * [experts, hidden, intermediate / ranks], each with a parameter of scales; vocabularies are sliced by rows, norms are whole.
 */
export function engineParameters(
  tensors: readonly TensorShape[],
  rank: number,
  ranks: number,
): EngineParameter[] {
  const parameters = new Map<string, TensorPart[]>()
  for (const [index, tensor] of tensors.entries()) {
    const name = parameterOf(tensor.name)
    const parts = parameters.get(name) ?? []
    parts.push(partOf(tensor, index, rank, ranks))
    parameters.set(name, parts)
  }
  return [...parameters].map(([name, parts]) => ({ name, parts }))
}

export function parameterBytes({ parts }: EngineParameter): number {
  return parts.reduce((sum, { width, height }) => sum + width * height, 0)
}

function parameterOf(name: string): string {
  const fused = FUSED.find(([pattern]) => pattern.test(name))
  return fused === undefined ? name : name.replace(...fused)
}

function partOf(tensor: TensorShape, index: number, rank: number, ranks: number): TensorPart {
  const { name, shape } = tensor
  const bytes = tensorBytes(tensor)
  const rowBytes = bytes / (shape[0] ?? 1)
  const whole = { tensor: index, source: 0, width: bytes, pitch: bytes, height: 1 }
  if (ROWS_SLICED.test(name)) {
    const { first, count } = sliceOf(shape[0] ?? 1, rank, ranks)
    const width = count * rowBytes
    return { ...whole, source: first * rowBytes, width, pitch: width }
  }
  if (!COLUMNS_SLICED.test(name) || ranks === 1) return whole
  const [rows = 1, columns = 1] = shape
  const { first, count } = sliceOf(columns, rank, ranks)
  const elementBytes = rowBytes / columns
  const width = count * elementBytes
  return { tensor: index, source: first * elementBytes, width, pitch: rowBytes, height: rows }
}

/**
 * A rank's of `length` rows or columns. Scales of blocks that do not divide among the ranks: all blocks that the rank's slice of
 * the weight touches, so that a block may be on two ranks.
 */
function sliceOf(length: number, rank: number, ranks: number): { first: number; count: number } {
  const first = Math.floor((length * rank) / ranks)
  return { first, count: Math.ceil((length * (rank + 1)) / ranks) - first }
}
