import { expect, test } from 'bun:test'
import { buildTable } from '../checkpoint/build-table.ts'
import { dtypeIndex } from '../safetensors/dtypes.ts'
import { makePlan } from './make-plan.ts'

const BYTES = 1024

/** So many owners with a tensor each, and so many ranks that read them, all on hosts of their own. */
function planOf(owners: number, receivers: number) {
  const ranks = Array.from({ length: receivers }, (_, i) => i)
  const rows = Array.from({ length: owners }, (_, owner) => ({
    name: `${owner}.w`,
    dtype: dtypeIndex('U8'),
    shape: [BYTES],
    bytes: BYTES,
    owner,
    offset: 0,
  }))
  const hosts = owners + receivers
  return makePlan({
    table: buildTable(rows),
    sources: rows.map(() => ({ starts: Float64Array.of(0), bytes: Float64Array.of(BYTES) })),
    ownerRanks: rows.map(() => ranks),
    network: {
      devices: Array.from({ length: hosts }, () => ({ bytesPerSecond: 1e9 })),
      owners: rows.map((_, owner) => ({ rank: 100 + owner, host: owner, devices: [owner] })),
      receivers: ranks.map((rank) => {
        return { rank, host: owners + rank, devices: [owners + rank] }
      }),
    },
    mode: 'pipelined',
    ringBytes: 2 ** 21,
    bucketBytes: BYTES,
    segmentBytes: BYTES,
  })
}

test('each receiver reads as much, also where every owner has a single bucket', () => {
  const { bucketRank } = planOf(8, 4)
  for (const rank of [0, 1, 2, 3]) expect(bucketRank.filter((one) => one === rank).length).toBe(2)
})
