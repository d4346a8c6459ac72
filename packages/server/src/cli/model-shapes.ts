/** A tensor without its bytes; `dtype` is safetensors' name. */
export interface TensorShape {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
}

/** Multi-head latent attention, as DeepSeek-V3 has it. */
interface LatentAttention {
  readonly kind: 'latent'
  readonly heads: number
  readonly queryRank: number
  readonly keyValueRank: number
  /** Of a head, without and with a position; and of its values. */
  readonly plain: number
  readonly rotary: number
  readonly value: number
}

/** Heads that share keys and values. */
interface GroupedAttention {
  readonly kind: 'grouped'
  readonly headSize: number
  readonly heads: number
  readonly keyValueHeads: number
  /** Norms of query and key, as Qwen3 has them. */
  readonly norm: boolean
  /** Of query, key and value, as GLM-4.5 has them. */
  readonly bias: boolean
}

interface Experts {
  readonly count: number
  readonly intermediate: number
  /** Experts that every token goes through, in one. */
  readonly shared: number
  /** Layers before the first that has experts. */
  readonly from: number
  /** The router has a bias for each expert, against overload. */
  readonly routerBias: boolean
}

interface Decoder {
  readonly hidden: number
  readonly layers: number
  readonly attention: GroupedAttention | LatentAttention
  readonly vocabulary: number
  /** Of the layers without experts. */
  readonly intermediate: number
  readonly experts: Experts | null
  /** A layer more that predicts the token after the next one, with an embedding and a head of its own. */
  readonly predictsTwo: boolean
  /** Linear layers are FP8, each with float32 scales of blocks of 128 x 128; else all is bf16. */
  readonly quantized: boolean
}

const BLOCK = 128

/** The sizes are those that the published `config.json` of each gives. */
const DECODERS = {
  // 249 MB, the model of the demo
  'small-llama': dense(768, 12, grouped(64, 12, 4), 32_000, 2048),
  // 16.4 GB in 399 tensors
  'qwen3-8b': dense(4096, 36, grouped(128, 32, 8, 'norm'), 151_936, 12_288),
  // 61 GB in 18,867 tensors
  'qwen3-30b-a3b': {
    ...dense(2048, 48, grouped(128, 32, 4, 'norm'), 151_936, 0),
    experts: experts(128, 768),
  },
  // 141 GB in 723 tensors
  'llama-3-70b': dense(8192, 80, grouped(128, 64, 8), 128_256, 28_672),
  // 221 GB in 18,329 tensors
  'glm-4.5-air': {
    ...dense(4096, 46, grouped(128, 96, 8, 'bias'), 151_552, 10_944),
    experts: experts(128, 1408, { shared: 1, from: 1, routerBias: true }),
    predictsTwo: true,
  },
  // 470 GB in 36,945 tensors
  'qwen3-235b-a22b': {
    ...dense(4096, 94, grouped(128, 64, 4, 'norm'), 151_936, 0),
    experts: experts(128, 1536),
  },
  // 689 GB in 91,991 tensors
  'deepseek-v3.1': {
    ...dense(7168, 61, latent(128), 129_280, 18_432),
    experts: experts(256, 2048, { shared: 1, from: 3, routerBias: true }),
    predictsTwo: true,
    quantized: true,
  },
  // 1,029 GB in 139,583 tensors
  'kimi-k2': {
    ...dense(7168, 61, latent(64), 163_840, 18_432),
    experts: experts(384, 2048, { shared: 1, from: 1, routerBias: true }),
    quantized: true,
  },
} as const satisfies Record<string, Decoder>

export type ModelName = keyof typeof DECODERS

export const MODEL_NAMES = Object.keys(DECODERS) as ModelName[]

/** The tensors of a decoder model under the names that Hugging Face checkpoints use. */
export function modelTensors(model: ModelName): TensorShape[] {
  const d: Decoder = DECODERS[model]
  const out = new Tensors(d.quantized)
  out.plain('model.embed_tokens.weight', d.vocabulary, d.hidden)
  for (let layer = 0; layer < d.layers; layer++) addLayer(d, layer, out)
  if (d.predictsTwo) addPredicting(d, out)
  out.plain('model.norm.weight', d.hidden)
  out.plain('lm_head.weight', d.vocabulary, d.hidden)
  return out.all
}

/** Experts of 24 layers in FP8, each weight with float32 scales of blocks of 128 x 128: 14.5 GB in 18,432 tensors. */
export function quantizedExperts(): TensorShape[] {
  const out = new Tensors(true)
  for (let layer = 0; layer < 24; layer++) {
    for (let expert = 0; expert < 128; expert++) {
      addMlp(2048, 768, `model.layers.${layer}.mlp.experts.${expert}`, out)
    }
  }
  return out.all
}

class Tensors {
  readonly all: TensorShape[] = []
  readonly #quantized: boolean

  constructor(quantized: boolean) {
    this.#quantized = quantized
  }

  plain(name: string, ...shape: number[]): void {
    this.all.push({ name, dtype: 'BF16', shape })
  }

  single(name: string, ...shape: number[]): void {
    this.all.push({ name, dtype: 'F32', shape })
  }

  linear(name: string, to: number, from: number): void {
    if (!this.#quantized) return this.plain(`${name}.weight`, to, from)
    this.all.push({ name: `${name}.weight`, dtype: 'F8_E4M3', shape: [to, from] })
    this.single(`${name}.weight_scale_inv`, Math.ceil(to / BLOCK), Math.ceil(from / BLOCK))
  }
}

function addLayer(d: Decoder, number: number, out: Tensors): void {
  const layer = `model.layers.${number}`
  out.plain(`${layer}.input_layernorm.weight`, d.hidden)
  if (d.attention.kind === 'latent') addLatent(d, d.attention, `${layer}.self_attn`, out)
  else addGrouped(d, d.attention, `${layer}.self_attn`, out)
  out.plain(`${layer}.post_attention_layernorm.weight`, d.hidden)
  if (d.experts !== null && number >= d.experts.from) {
    return addExperts(d.hidden, d.experts, `${layer}.mlp`, out)
  }
  addMlp(d.hidden, d.intermediate, `${layer}.mlp`, out)
}

function addGrouped(d: Decoder, attention: GroupedAttention, name: string, out: Tensors): void {
  const { headSize, heads, keyValueHeads, norm, bias } = attention
  for (const [part, count] of [
    ['q_proj', heads],
    ['k_proj', keyValueHeads],
    ['v_proj', keyValueHeads],
  ] as const) {
    out.linear(`${name}.${part}`, count * headSize, d.hidden)
    if (bias) out.plain(`${name}.${part}.bias`, count * headSize)
  }
  out.linear(`${name}.o_proj`, d.hidden, heads * headSize)
  if (!norm) return
  out.plain(`${name}.q_norm.weight`, headSize)
  out.plain(`${name}.k_norm.weight`, headSize)
}

function addLatent(d: Decoder, attention: LatentAttention, name: string, out: Tensors): void {
  const { heads, queryRank, keyValueRank, plain, rotary, value } = attention
  out.linear(`${name}.q_a_proj`, queryRank, d.hidden)
  out.plain(`${name}.q_a_layernorm.weight`, queryRank)
  out.linear(`${name}.q_b_proj`, heads * (plain + rotary), queryRank)
  out.linear(`${name}.kv_a_proj_with_mqa`, keyValueRank + rotary, d.hidden)
  out.plain(`${name}.kv_a_layernorm.weight`, keyValueRank)
  out.linear(`${name}.kv_b_proj`, heads * (plain + value), keyValueRank)
  out.linear(`${name}.o_proj`, d.hidden, heads * value)
}

function addExperts(hidden: number, experts: Experts, name: string, out: Tensors): void {
  const { count, intermediate, shared, routerBias } = experts
  out.plain(`${name}.gate.weight`, count, hidden)
  if (routerBias) out.single(`${name}.gate.e_score_correction_bias`, count)
  if (shared > 0) addMlp(hidden, shared * intermediate, `${name}.shared_experts`, out)
  for (let expert = 0; expert < count; expert++) {
    addMlp(hidden, intermediate, `${name}.experts.${expert}`, out)
  }
}

function addMlp(hidden: number, intermediate: number, name: string, out: Tensors): void {
  out.linear(`${name}.gate_proj`, intermediate, hidden)
  out.linear(`${name}.up_proj`, intermediate, hidden)
  out.linear(`${name}.down_proj`, hidden, intermediate)
}

/** Behind the others, as a layer of theirs and what it needs beside that. */
function addPredicting(d: Decoder, out: Tensors): void {
  const layer = `model.layers.${d.layers}`
  out.plain(`${layer}.embed_tokens.weight`, d.vocabulary, d.hidden)
  out.plain(`${layer}.enorm.weight`, d.hidden)
  out.plain(`${layer}.hnorm.weight`, d.hidden)
  out.plain(`${layer}.eh_proj.weight`, d.hidden, 2 * d.hidden)
  addLayer(d, d.layers, out)
  out.plain(`${layer}.shared_head.norm.weight`, d.hidden)
  out.plain(`${layer}.shared_head.head.weight`, d.vocabulary, d.hidden)
}

function dense(
  hidden: number,
  layers: number,
  attention: Decoder['attention'],
  vocabulary: number,
  intermediate: number,
): Decoder {
  const sizes = { hidden, layers, attention, vocabulary, intermediate }
  return { ...sizes, experts: null, predictsTwo: false, quantized: false }
}

function grouped(
  headSize: number,
  heads: number,
  keyValueHeads: number,
  has?: 'norm' | 'bias',
): GroupedAttention {
  const more = { norm: has === 'norm', bias: has === 'bias' }
  return { kind: 'grouped', headSize, heads, keyValueHeads, ...more }
}

function latent(heads: number): LatentAttention {
  const ranks = { queryRank: 1536, keyValueRank: 512 }
  return { kind: 'latent', heads, ...ranks, plain: 128, rotary: 64, value: 128 }
}

function experts(count: number, intermediate: number, more: Partial<Experts> = {}): Experts {
  return { count, intermediate, shared: 0, from: 0, routerBias: false, ...more }
}
