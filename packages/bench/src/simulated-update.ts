import { naturalOrder } from '@ckpt/core/checkpoint/natural-order'
import type { TensorTable, SourceSpace, UpdateReport } from '@ckpt/core'
import { type CostRates, SEGMENT_BYTES } from '@ckpt/core/plan/cost'
import { makePlan } from '@ckpt/core/plan/make-plan'
import { simulate, uniformCluster } from '@ckpt/core/update/simulate'
import { readShapes } from 'ckpt/cli/checkpoint-files'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { layOutOwned } from 'ckpt/cli/plan-prediction'

/** Rates of daemons with a rank each on a device of its own, all equal, and of their engines. */
export interface StageRates extends Omit<CostRates, 'tensorSeconds'> {
  /** What a broadcast takes beside its bytes. */
  readonly broadcastSeconds: number
  /** From the first copy until every engine has opened its ring. */
  readonly openSeconds: number
}

/** Where the tensors of files lie that each were registered at one daemon. */
export interface OwnedLayout {
  readonly table: TensorTable
  readonly sources: readonly SourceSpace[]
}

/** @param files the first belongs to the first daemon, and so on */
export async function layoutOfFiles(files: readonly string[]): Promise<OwnedLayout> {
  const found: { readonly tensor: TensorShape; readonly owner: number }[] = []
  for (const [owner, path] of files.entries()) {
    for (const tensor of await readShapes(path)) found.push({ tensor, owner })
  }
  const order = naturalOrder(found.map(({ tensor }) => tensor.name))
  const sorted = Array.from(order, (i) => found[i] as (typeof found)[number])
  const owners = sorted.map(({ owner }) => owner)
  return layOutOwned(
    sorted.map(({ tensor }) => tensor),
    owners,
    files.length,
  )
}

/** What an update says of its plan. */
export type PlanSizes = Pick<UpdateReport, 'ring_bytes' | 'bucket_bytes'>

/** An update through the ring on a simulated clock: its buckets, and the seconds from its first copy until the last engine has all. */
export function simulateUpdate(
  { table, sources }: OwnedLayout,
  { ring_bytes: ringBytes, bucket_bytes: bucketBytes }: PlanSizes,
  rates: StageRates,
): { readonly buckets: number; readonly seconds: number } {
  const ranks = [...sources.keys()]
  const plan = makePlan({
    table,
    sources,
    ownerRanks: ranks.map((rank) => [rank]),
    mode: 'pipelined',
    ringBytes,
    bucketBytes,
    segmentBytes: Math.min(SEGMENT_BYTES, bucketBytes),
  })
  const { broadcastSeconds, openSeconds } = rates
  const uniform = uniformCluster(ranks, { ...rates, tensorSeconds: 0 })
  const { totalSeconds } = simulate(plan, table, { ...uniform, broadcastSeconds, openSeconds })
  return { buckets: plan.bucketCount, seconds: totalSeconds }
}
