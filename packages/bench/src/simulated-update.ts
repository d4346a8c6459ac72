import { naturalOrder } from '@ckpt/core/checkpoint/natural-order'
import type { TensorTable, SourceSpace, UpdateReport } from '@ckpt/core'
import { type CostRates, SEGMENT_BYTES } from '@ckpt/core/plan/cost'
import { makePlan } from '@ckpt/core/plan/make-plan'
import { simulate, uniformCluster } from '@ckpt/core/update/simulate'
import { readShapes } from 'ckpt/cli/checkpoint-files'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import { layOutOwned } from 'ckpt/cli/plan-prediction'

/** Rates of ranks that are all equal, and of their engines; of H2D copies that of each device's link. */
export interface StageRates extends Omit<CostRates, 'tensorSeconds'> {
  /** What a broadcast takes beside its bytes. */
  readonly broadcastSeconds: number
  /** From the first copy until every engine has opened its ring. */
  readonly openSeconds: number
}

/** Where the tensors of files lie, each registered at one daemon, and who copies them. */
export interface OwnedLayout {
  readonly table: TensorTable
  /** Of each daemon. */
  readonly sources: readonly SourceSpace[]
  readonly ownerRanks: readonly (readonly number[])[]
  /** Of each rank: its device. Those that share one share its link. */
  readonly devices: readonly number[]
}

/** Of daemons with a rank and a device each. @param files the first belongs to the first daemon, and so on */
export async function layoutOfFiles(files: readonly string[]): Promise<OwnedLayout> {
  const owners = [...files.keys()]
  const layout = await layOutFiles(files, owners)
  return { ...layout, ownerRanks: owners.map((owner) => [owner]), devices: owners }
}

/** Of one daemon whose ranks share a device. */
export async function layoutOfSharedDevice(
  files: readonly string[],
  ranks: number,
): Promise<OwnedLayout> {
  const layout = await layOutFiles(
    files,
    files.map(() => 0),
  )
  const all = Array.from({ length: ranks }, (_, rank) => rank)
  return { ...layout, ownerRanks: [all], devices: all.map(() => 0) }
}

/** @param ownerOfFile the daemon of each */
async function layOutFiles(
  files: readonly string[],
  ownerOfFile: readonly number[],
): Promise<Pick<OwnedLayout, 'table' | 'sources'>> {
  const found: { readonly tensor: TensorShape; readonly owner: number }[] = []
  for (const [i, path] of files.entries()) {
    const owner = ownerOfFile[i] as number
    for (const tensor of await readShapes(path)) found.push({ tensor, owner })
  }
  const order = naturalOrder(found.map(({ tensor }) => tensor.name))
  const sorted = Array.from(order, (i) => found[i] as (typeof found)[number])
  const owners = sorted.map(({ owner }) => owner)
  return layOutOwned(
    sorted.map(({ tensor }) => tensor),
    owners,
    Math.max(...ownerOfFile) + 1,
  )
}

/** What an update says of its plan. */
export type PlanSizes = Pick<UpdateReport, 'ring_bytes' | 'bucket_bytes'>

/** An update through the ring on a simulated clock: its buckets, and the seconds from its first copy until the last engine has all. */
export function simulateUpdate(
  { table, sources, ownerRanks, devices }: OwnedLayout,
  { ring_bytes: ringBytes, bucket_bytes: bucketBytes }: PlanSizes,
  rates: StageRates,
): { readonly buckets: number; readonly seconds: number } {
  const plan = makePlan({
    table,
    sources,
    ownerRanks,
    mode: 'pipelined',
    ringBytes,
    bucketBytes,
    segmentBytes: Math.min(SEGMENT_BYTES, bucketBytes),
  })
  const { broadcastSeconds, openSeconds } = rates
  const uniform = uniformCluster([...devices.keys()], { ...rates, tensorSeconds: 0 })
  const ranks = uniform.ranks.map((one) => ({ ...one, device: devices[one.rank] as number }))
  const cluster = { ...uniform, ranks, broadcastSeconds, openSeconds }
  const { totalSeconds } = simulate(plan, table, cluster)
  return { buckets: plan.bucketCount, seconds: totalSeconds }
}
