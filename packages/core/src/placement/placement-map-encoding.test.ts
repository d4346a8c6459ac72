// Writes placement maps as `ckpt_worker/placement.py` does. No tests of its own: it ends in .test.ts because only tests use it.

/** One copy: offsets, strides and the run are bytes. */
export interface CopyDraw {
  readonly tensor: number
  readonly source: number
  readonly allocation: number
  readonly destination: number
  readonly run: number
  readonly sizes: readonly [number, number, number]
  readonly sourceStrides: readonly [number, number, number]
  readonly destinationStrides: readonly [number, number, number]
}

export const COLUMNS = [
  'tensor source allocation destination run size_0 size_1 size_2',
  'source_stride_0 source_stride_1 source_stride_2',
  'destination_stride_0 destination_stride_1 destination_stride_2',
].flatMap((names) => names.split(' '))

export function encodeMap(
  tensors: readonly string[],
  allocationBytes: readonly number[],
  copies: readonly CopyDraw[],
  changed: object = {},
): Uint8Array {
  const head = { format: 1, copies: copies.length, columns: COLUMNS, tensors }
  const text = JSON.stringify({ ...head, allocation_bytes: allocationBytes, ...changed })
  const json = new TextEncoder().encode(text)
  const columns = COLUMNS.map((_, column) => {
    return copies.map((copy) => {
      const { tensor, source, allocation, destination, run } = copy
      const { sizes, sourceStrides, destinationStrides } = copy
      const row = [tensor, source, allocation, destination, run]
      return [...row, ...sizes, ...sourceStrides, ...destinationStrides][column] as number
    })
  })
  const words = BigInt64Array.from(columns.flat().map(BigInt))
  const body = new Uint8Array(4 + json.length + words.byteLength)
  new DataView(body.buffer).setUint32(0, json.length, true)
  body.set(json, 4)
  body.set(new Uint8Array(words.buffer), 4 + json.length)
  return body
}
