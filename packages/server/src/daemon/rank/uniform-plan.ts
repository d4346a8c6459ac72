import { buildTable, dtypeIndex, type PlanInput } from '@ckpt/core'

/** Tensors that fill a bucket each, in one source buffer of one rank. */
export function uniformPlan(buckets: number, bucketBytes: number, ringBytes: number): PlanInput {
  const rows = Array.from({ length: buckets }, (_, i) => ({
    name: `tensor.${i}`,
    dtype: dtypeIndex('U8'),
    shape: [bucketBytes],
    bytes: bucketBytes,
    owner: 0,
    offset: i * bucketBytes,
  }))
  return {
    table: buildTable(rows),
    sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(buckets * bucketBytes) }],
    ownerRanks: [[0]],
    mode: 'pipelined',
    ringBytes,
    bucketBytes,
    segmentBytes: bucketBytes,
  }
}
