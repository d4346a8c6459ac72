/** A tensor without its bytes; `dtype` is safetensors' name. */
export interface TensorShape {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
}

interface Decoder {
  readonly hidden: number
  readonly layers: number
  readonly headSize: number
  readonly heads: number
  readonly keyValueHeads: number
  readonly vocabulary: number
  readonly intermediate: number
  /** Experts of each layer; 0: one dense MLP. */
  readonly experts: number
  /** Norms of query and key, as Qwen3 has them. */
  readonly queryNorm: boolean
}

const DECODERS = {
  // 249 MB, the model of the demo
  'small-llama': decoder(768, 12, 64, [12, 4], 32_000, 2048),
  // 16.4 GB in 399 tensors
  'qwen3-8b': decoder(4096, 36, 128, [32, 8], 151_936, 12_288, 0, true),
  // 61 GB in 18,867 tensors
  'qwen3-30b-a3b': decoder(2048, 48, 128, [32, 4], 151_936, 768, 128, true),
  // 141 GB in 723 tensors
  'llama-3-70b': decoder(8192, 80, 128, [64, 8], 128_256, 28_672),
} as const satisfies Record<string, Decoder>

export type ModelName = keyof typeof DECODERS

export const MODEL_NAMES = Object.keys(DECODERS) as ModelName[]

/** The tensors of a bf16 decoder model under the names that Hugging Face checkpoints use. */
export function modelTensors(model: ModelName): TensorShape[] {
  const d = DECODERS[model]
  const tensors: TensorShape[] = []
  const add = (name: string, ...shape: number[]) => tensors.push({ name, dtype: 'BF16', shape })
  add('model.embed_tokens.weight', d.vocabulary, d.hidden)
  for (let layer = 0; layer < d.layers; layer++) addLayer(d, `model.layers.${layer}`, add)
  add('model.norm.weight', d.hidden)
  add('lm_head.weight', d.vocabulary, d.hidden)
  return tensors
}

/** Experts of 24 layers in FP8, each weight with float32 scales of blocks of 128 x 128: 14.5 GB in 18,432 tensors. */
export function quantizedExperts(): TensorShape[] {
  const tensors: TensorShape[] = []
  for (let layer = 0; layer < 24; layer++) {
    for (let expert = 0; expert < 128; expert++) {
      for (const part of ['gate_proj', 'up_proj', 'down_proj']) {
        const name = `model.layers.${layer}.mlp.experts.${expert}.${part}.weight`
        const down = part === 'down_proj'
        const shape = down ? [2048, 768] : [768, 2048]
        const scales = down ? [16, 6] : [6, 16]
        tensors.push({ name, dtype: 'F8_E4M3', shape })
        tensors.push({ name: `${name}_scale_inv`, dtype: 'F32', shape: scales })
      }
    }
  }
  return tensors
}

type Add = (name: string, ...shape: number[]) => void

function addLayer(d: Decoder, layer: string, add: Add): void {
  add(`${layer}.input_layernorm.weight`, d.hidden)
  add(`${layer}.self_attn.q_proj.weight`, d.heads * d.headSize, d.hidden)
  add(`${layer}.self_attn.k_proj.weight`, d.keyValueHeads * d.headSize, d.hidden)
  add(`${layer}.self_attn.v_proj.weight`, d.keyValueHeads * d.headSize, d.hidden)
  add(`${layer}.self_attn.o_proj.weight`, d.hidden, d.heads * d.headSize)
  if (d.queryNorm) {
    add(`${layer}.self_attn.q_norm.weight`, d.headSize)
    add(`${layer}.self_attn.k_norm.weight`, d.headSize)
  }
  add(`${layer}.post_attention_layernorm.weight`, d.hidden)
  if (d.experts === 0) return addMlp(d, `${layer}.mlp`, add)
  add(`${layer}.mlp.gate.weight`, d.experts, d.hidden)
  for (let expert = 0; expert < d.experts; expert++) {
    addMlp(d, `${layer}.mlp.experts.${expert}`, add)
  }
}

function addMlp(d: Decoder, mlp: string, add: Add): void {
  add(`${mlp}.gate_proj.weight`, d.intermediate, d.hidden)
  add(`${mlp}.up_proj.weight`, d.intermediate, d.hidden)
  add(`${mlp}.down_proj.weight`, d.hidden, d.intermediate)
}

function decoder(
  hidden: number,
  layers: number,
  headSize: number,
  [heads, keyValueHeads]: readonly [number, number],
  vocabulary: number,
  intermediate: number,
  experts = 0,
  queryNorm = false,
): Decoder {
  return {
    hidden,
    layers,
    headSize,
    heads,
    keyValueHeads,
    vocabulary,
    intermediate,
    experts,
    queryNorm,
  }
}
