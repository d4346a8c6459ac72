import type { TakenBuckets, UpdateReport } from '@ckpt/core'
import type { PlanSummary, StageIntervals } from '../rank/messages.ts'
import type { RankInfo } from '../types.ts'
import type { UpdateTold } from './rates.ts'

/** What it takes to learn from an update that succeeded. */
export interface ToldParts {
  readonly ranks: readonly RankInfo[]
  readonly summary: PlanSummary
  readonly stages: UpdateReport['stages']
  /** Per engine, with the stages of each of its ranks. */
  readonly engines: readonly { readonly key: string; readonly stages: readonly StageIntervals[] }[]
}

/** What an update tells of its devices and engines. An engine whose ranks did not take every bucket one by one tells nothing. */
export function toldBy({ ranks, summary, stages, engines }: ToldParts): UpdateTold {
  const { bytes, busy_s: seconds } = stages.broadcast
  const { tensorsThrough, bytesThrough, bucketCount } = summary
  const contents = { tensors: differences(tensorsThrough), bytes: differences(bytesThrough) }
  return {
    ranks,
    broadcast: { bytes, seconds },
    engines: engines.flatMap(
      ({ key, stages: ofRanks }): { key: string; buckets: TakenBuckets }[] => {
        const reloads = ofRanks.map(({ reload }) => reload)
        // two numbers of each bucket: its list was sent, it was acknowledged
        if (reloads.length === 0 || reloads.some(({ length }) => length !== 2 * bucketCount))
          return []
        const seconds = Float64Array.from({ length: bucketCount }, (_, bucket) => {
          const spans = reloads.map((reload) => reload.subarray(2 * bucket, 2 * bucket + 2))
          // an engine is as slow as its slowest rank
          return Math.max(...spans.map(([begin = 0, end = 0]) => end - begin)) / 1000
        })
        return [{ key, buckets: { ...contents, seconds } }]
      },
    ),
  }
}

function differences(through: ArrayLike<number>): Float64Array {
  const at = (i: number) => (i < 0 ? 0 : (through[i] as number))
  return Float64Array.from({ length: through.length }, (_, i) => at(i) - at(i - 1))
}
