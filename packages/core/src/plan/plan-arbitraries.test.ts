// Random inputs for the tests of plans and executors. No tests of its own: it ends in .test.ts
// because only tests may import fast-check.
import fc from 'fast-check'
import { buildTable, type TensorRow } from '../checkpoint/build-table.ts'
import type { SourceSpace } from '../checkpoint/table.ts'
import { DTYPES, dtypeIndex } from '../safetensors/dtypes.ts'
import type { PlanInput, PlanNetwork } from './plan.ts'

const DTYPE_NAMES = ['U8', 'BF16', 'F32', 'F64', 'F4', 'F6_E2M3', 'C64', 'F8_E4M3']

interface TensorDraw {
  readonly name: string
  readonly dtype: number
  /** Number of 8-element groups, so that packed types have whole bytes. */
  readonly groups: number
  /** Bytes left free before it, and whether a buffer may end there. */
  readonly gap: number
  readonly hole: boolean
  /** Whether the source is aligned to the item. */
  readonly aligned: boolean
}

const tensorDraw: fc.Arbitrary<TensorDraw> = fc.record({
  name: fc.stringMatching(/^[ab]\.\d{1,3}\.w$/),
  dtype: fc.constantFrom(...DTYPE_NAMES.map(dtypeIndex)),
  groups: fc.oneof(
    { weight: 4, arbitrary: fc.nat({ max: 20 }) },
    { weight: 1, arbitrary: fc.nat({ max: 200 }) },
    { weight: 1, arbitrary: fc.constant(0) },
  ),
  gap: fc.oneof(fc.constant(0), fc.nat({ max: 300 }), fc.constantFrom(255, 256)),
  hole: fc.boolean(),
  aligned: fc.oneof({ weight: 4, arbitrary: fc.constant(true) }, fc.boolean()),
})

const ownerDraw = fc.record({
  tensors: fc.array(tensorDraw, { maxLength: 14 }),
  /** Shares of the space at which a buffer ends and the next one begins, also within tensors. */
  cuts: fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 4 }),
  ranks: fc.uniqueArray(fc.nat({ max: 5 }), { minLength: 1, maxLength: 3 }),
  /** Whether the tensors lie in the source in the order of their names. */
  inOrder: fc.boolean(),
})

/** Inputs of {@link makePlan} with a few kilobytes, which a test can go through byte by byte. */
export const planInputs: fc.Arbitrary<PlanInput> = fc
  .record({
    owners: fc.array(ownerDraw, { minLength: 1, maxLength: 3 }),
    spare: fc.nat({ max: 24 }),
    bucketBytes: fc.integer({ min: 1, max: 5000 }),
    segmentBytes: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 300, max: 4000 })),
    mode: fc.constantFrom('pipelined' as const, 'pipelined' as const, 'serial' as const),
  })
  .map(({ owners, spare, bucketBytes, segmentBytes, mode }) => {
    const rows: TensorRow[] = []
    const sources = owners.map((draw, owner) => placeOwner(draw, owner, rows))
    const table = buildTable(rows)
    const largest = Math.max(1, ...table.bytes)
    const ringBytes = (Math.ceil(largest / 256) + spare) * 256
    const ownerRanks = owners.map((draw) => draw.ranks)
    return { table, sources, ownerRanks, mode, ringBytes, bucketBytes, segmentBytes }
  })

/** Such inputs, of which every other one is read over a network: owners and receivers on hosts of their own, with a device each. */
export const anyPlanInputs: fc.Arbitrary<PlanInput> = fc.oneof(
  planInputs,
  planInputs.map((input) => {
    const [ranks = []] = input.ownerRanks
    const ownerRanks = input.ownerRanks.map(() => ranks)
    return { ...input, ownerRanks, network: networkOf(ownerRanks) }
  }),
)

function networkOf(ownerRanks: readonly (readonly number[])[]): PlanNetwork {
  const [ranks = []] = ownerRanks
  const hosts = [...ownerRanks.keys(), ...ranks.map((_, i) => ownerRanks.length + i)]
  const devices = hosts.map((host) => ({ bytesPerSecond: 1000 * (1 + (host % 3)) }))
  const rankOf = (rank: number, host: number) => ({ rank, host, devices: [host] })
  return {
    devices,
    owners: ownerRanks.map((_, owner) => rankOf(100 + owner, owner)),
    receivers: ranks.map((rank, i) => rankOf(rank, ownerRanks.length + i)),
  }
}

function placeOwner(
  draw: typeof ownerDraw extends fc.Arbitrary<infer T> ? T : never,
  owner: number,
  rows: TensorRow[],
): SourceSpace {
  const used = new Set(rows.map((row) => row.name))
  const fresh = draw.tensors.filter(({ name }) => !used.has(name) && used.add(name))
  if (draw.inOrder)
    fresh.sort((a, b) => a.name.length - b.name.length || (a.name < b.name ? -1 : 1))
  const starts: number[] = []
  const ends: number[] = []
  let end = 0
  for (const { name, dtype, groups, gap, hole, aligned } of fresh) {
    const item = Math.ceil((DTYPES[dtype]?.bits ?? 8) / 8)
    const from = end
    end += gap
    if (aligned) end = Math.ceil(end / item) * item
    const bytes = groups * (DTYPES[dtype]?.bits ?? 8)
    if (starts.length === 0) starts.push(0)
    else if (hole && end > from) {
      ends.push(from)
      starts.push(end)
    }
    rows.push({ name, dtype, shape: [groups * 8], bytes, owner, offset: end })
    end += bytes
  }
  if (starts.length > 0) ends.push(end)
  cutBuffers(draw.cuts, starts, ends)
  const bytes = Float64Array.from(starts, (start, k) => (ends[k] as number) - start)
  return { starts: Float64Array.from(starts), bytes }
}

/** Ends buffers at arbitrary bytes, where the next one begins at once. */
function cutBuffers(cuts: readonly number[], starts: number[], ends: number[]): void {
  for (const share of cuts) {
    const cut = Math.floor(share * (ends.at(-1) ?? 0))
    const buffer = starts.findIndex((start, k) => start < cut && cut < (ends[k] as number))
    if (buffer < 0) continue
    starts.splice(buffer + 1, 0, cut)
    ends.splice(buffer, 0, cut)
  }
}
