/** An element type of the safetensors format. */
export interface Dtype {
  /** As written in a header, e.g. `BF16`. */
  readonly name: string
  /** Attribute of the module `torch`, e.g. `bfloat16`; null when torch has no such type. */
  readonly torch: string | null
  /** Bits of one element; 4 and 6 for the packed types. */
  readonly bits: number
}

/**
 * Every dtype of the format, as in `enum Dtype` of safetensors 0.7 (`safetensors/src/tensor.rs`). A
 * table stores the index, and daemons exchange it: append only.
 */
export const DTYPES: readonly Dtype[] = [
  { name: 'BOOL', torch: 'bool', bits: 8 },
  { name: 'U8', torch: 'uint8', bits: 8 },
  { name: 'I8', torch: 'int8', bits: 8 },
  { name: 'I16', torch: 'int16', bits: 16 },
  { name: 'U16', torch: 'uint16', bits: 16 },
  { name: 'F16', torch: 'float16', bits: 16 },
  { name: 'BF16', torch: 'bfloat16', bits: 16 },
  { name: 'I32', torch: 'int32', bits: 32 },
  { name: 'U32', torch: 'uint32', bits: 32 },
  { name: 'F32', torch: 'float32', bits: 32 },
  { name: 'F64', torch: 'float64', bits: 64 },
  { name: 'I64', torch: 'int64', bits: 64 },
  { name: 'U64', torch: 'uint64', bits: 64 },
  { name: 'C64', torch: 'complex64', bits: 64 },
  { name: 'F8_E4M3', torch: 'float8_e4m3fn', bits: 8 },
  { name: 'F8_E5M2', torch: 'float8_e5m2', bits: 8 },
  { name: 'F8_E8M0', torch: 'float8_e8m0fnu', bits: 8 },
  { name: 'F8_E4M3FNUZ', torch: 'float8_e4m3fnuz', bits: 8 },
  { name: 'F8_E5M2FNUZ', torch: 'float8_e5m2fnuz', bits: 8 },
  { name: 'F4', torch: 'float4_e2m1fn_x2', bits: 4 },
  { name: 'F6_E2M3', torch: null, bits: 6 },
  { name: 'F6_E3M2', torch: null, bits: 6 },
]

/** Torch types whose one element holds several of ours along the last dimension. */
const TORCH_PACKED: ReadonlyMap<string, number> = new Map([['float4_e2m1fn_x2', 2]])

const BY_NAME = new Map(DTYPES.map((dtype, index) => [dtype.name, index]))
const BY_TORCH = new Map(DTYPES.map((dtype, index) => [dtype.torch, index]))

/** Index into {@link DTYPES} of a safetensors name, -1 when there is none. */
export function dtypeIndex(name: string): number {
  return BY_NAME.get(name) ?? -1
}

/** Index into {@link DTYPES} of a torch name, with or without `torch.`; -1 when there is none. */
export function dtypeOfTorch(name: string): number {
  return BY_TORCH.get(name.startsWith('torch.') ? name.slice(6) : name) ?? -1
}

/**
 * Alignment in bytes that torch's `view` needs: the bytes of one element of the torch type, 1 for
 * packed types.
 */
export function itemBytes(dtype: number): number {
  return Math.ceil((DTYPES[dtype] as Dtype).bits / 8)
}

/**
 * Bytes of a tensor of this dtype and shape; null when they are not whole bytes or not a safe
 * integer. Dimensions must be safe non-negative integers. The product is taken from the left and
 * must stay safe, as in safetensors' own check.
 */
export function tensorBytes(dtype: number, shape: readonly number[]): number | null {
  let elements = 1
  for (const dimension of shape) {
    elements *= dimension
    if (!Number.isSafeInteger(elements)) return null
  }
  const bits = elements * (DTYPES[dtype] as Dtype).bits
  return Number.isSafeInteger(bits) && bits % 8 === 0 ? bits / 8 : null
}

/**
 * How torch sees a tensor: the name of its dtype and its shape there. `F4` is `float4_e2m1fn_x2`,
 * whose element is a pair, so that the last dimension is halved (safetensors' torch binding does
 * the same). Null when torch cannot hold it: the 6-bit types, and `F4` with an odd last dimension.
 */
export function torchView(
  dtype: number,
  shape: readonly number[],
): { torch: string; shape: readonly number[] } | null {
  const torch = (DTYPES[dtype] as Dtype).torch
  if (torch === null) return null
  const packed = TORCH_PACKED.get(torch)
  if (packed === undefined) return { torch, shape }
  const last = shape.at(-1)
  if (last === undefined || last % packed !== 0) return null
  return { torch, shape: [...shape.slice(0, -1), last / packed] }
}

/**
 * Inverse of {@link torchView}: a torch dtype (with or without `torch.`) and shape as ours; null
 * when there is none.
 */
export function ofTorchView(
  torch: string,
  shape: readonly number[],
): { dtype: number; shape: readonly number[] } | null {
  const dtype = dtypeOfTorch(torch)
  if (dtype < 0) return null
  const packed = TORCH_PACKED.get((DTYPES[dtype] as Dtype).torch ?? '')
  if (packed === undefined) return { dtype, shape }
  const last = shape.at(-1)
  return last === undefined ? null : { dtype, shape: [...shape.slice(0, -1), last * packed] }
}
