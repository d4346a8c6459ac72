import { expect, test } from 'bun:test'
import {
  DTYPES,
  dtypeIndex,
  dtypeOfTorch,
  itemBytes,
  ofTorchView,
  tensorBytes,
  torchView,
} from './dtypes.ts'

// enum Dtype and bitsize() of safetensors/src/tensor.rs
const BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
}

test('has every dtype of the format with its bits, and no other', () => {
  const bits = Object.fromEntries(DTYPES.map((dtype) => [dtype.name, dtype.bits]))
  expect(bits).toEqual(BITS)
})

test('finds dtypes by either name', () => {
  for (const [index, dtype] of DTYPES.entries()) {
    expect(dtypeIndex(dtype.name)).toBe(index)
    if (dtype.torch === null) continue
    expect(dtypeOfTorch(dtype.torch)).toBe(index)
    expect(dtypeOfTorch(`torch.${dtype.torch}`)).toBe(index)
  }
  expect(dtypeIndex('bf16')).toBe(-1)
  expect(dtypeIndex('__proto__')).toBe(-1)
  expect(dtypeOfTorch('BF16')).toBe(-1)
})

test('counts the bytes of a tensor', () => {
  const bytes = (name: string, shape: number[]) => tensorBytes(dtypeIndex(name), shape)
  expect(bytes('BF16', [3, 5])).toBe(30)
  expect(bytes('F32', [])).toBe(4)
  expect(bytes('I64', [7, 0, 9])).toBe(0)
  expect(bytes('F4', [3, 2])).toBe(3)
  expect(bytes('F4', [3])).toBeNull()
  expect(bytes('F6_E2M3', [4])).toBe(3)
  expect(bytes('F6_E3M2', [2])).toBeNull()
  expect(bytes('U8', [2 ** 30, 2 ** 30])).toBeNull()
  expect(bytes('U8', [2 ** 30, 2 ** 30, 0])).toBeNull()
  expect(bytes('U8', [0, 2 ** 30, 2 ** 30])).toBe(0)
  expect(itemBytes(dtypeIndex('F4'))).toBe(1)
  expect(itemBytes(dtypeIndex('C64'))).toBe(8)
})

test('shows torch what it can hold', () => {
  const f4 = dtypeIndex('F4')
  expect(torchView(dtypeIndex('BF16'), [3, 5])).toEqual({ torch: 'bfloat16', shape: [3, 5] })
  expect(torchView(dtypeIndex('F8_E8M0'), [])).toEqual({ torch: 'float8_e8m0fnu', shape: [] })
  expect(torchView(f4, [3, 8])).toEqual({ torch: 'float4_e2m1fn_x2', shape: [3, 4] })
  expect(torchView(f4, [2, 3])).toBeNull()
  expect(torchView(f4, [])).toBeNull()
  expect(torchView(dtypeIndex('F6_E2M3'), [4])).toBeNull()
  expect(ofTorchView('torch.float4_e2m1fn_x2', [3, 4])).toEqual({ dtype: f4, shape: [3, 8] })
  expect(ofTorchView('bfloat16', [3])).toEqual({ dtype: dtypeIndex('BF16'), shape: [3] })
  expect(ofTorchView('quint8', [3])).toBeNull()
})
