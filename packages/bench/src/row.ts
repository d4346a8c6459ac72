import type { Claim } from './claims.ts'
import { type Checked, median, type Timed, timeRuns, type Timing } from './measure.ts'

/** What a direct update consists of, of all ranks together. */
export interface CopyCounts {
  /** Of one piece each. */
  readonly single: number
  /** Two-dimensional ones. */
  readonly rows: number
  /** Gathered in pinned memory, and the copies that they became. */
  readonly pieces: number
  readonly gathered: number
}

/** One line of the table, one element of `rows` in the JSON document. */
export interface Row {
  readonly bench: string
  readonly case: string
  readonly tensors: number | null
  /** Bytes that one run moves; null where none move. */
  readonly bytes: number | null
  readonly runs: number
  readonly p50_s: number
  readonly p99_s: number
  /** Bytes by the median time, nccl-tests' algbw. */
  readonly gb_per_s: number | null
  /** nccl-tests' busbw: algbw by what each link carries of every byte. */
  readonly bus_gb_per_s: number | null
  /** What bounds it, measured in the same run; null where nothing was. */
  readonly limit_gb_per_s: number | null
  /** Most device memory in use beside what was in use before, and memory of the daemon's process; null: not looked at. */
  readonly device_bytes: number | null
  readonly host_bytes: number | null
  /** `direct` only. */
  readonly copies: CopyCounts | null
  /** Ranges (tensors, pieces, memories) that were compared, and those that differ. */
  readonly compared: number
  readonly wrong: number
  /** What the row must reach; empty where nothing is asked of it. */
  readonly claims: readonly Claim[]
}

export interface RowHead {
  readonly bench: string
  readonly case: string
  readonly tensors?: number
  readonly bytes?: number
  readonly busFactor?: number
  readonly limitGbPerSecond?: number
}

/** Percent; null where a rate or a limit was not measured. */
export function percentOfLimit({
  gb_per_s,
  limit_gb_per_s,
}: Pick<Row, 'gb_per_s' | 'limit_gb_per_s'>): number | null {
  if (gb_per_s === null || limit_gb_per_s === null) return null
  return (gb_per_s / limit_gb_per_s) * 100
}

/** A row of runs that were timed one by one. */
export function rowOf(head: RowHead, seconds: readonly number[], checked: Checked): Row {
  const [p50Seconds, p99Seconds] = [median(seconds), Math.max(...seconds)]
  return makeRow(head, { runs: seconds.length, p50Seconds, p99Seconds, ...checked })
}

/** Times the runs and makes a row of them. */
export async function measureRow(head: RowHead, timed: Timed): Promise<Row> {
  return makeRow(head, await timeRuns(timed))
}

function makeRow(head: RowHead, timing: Timing): Row {
  const { runs, p50Seconds, p99Seconds, compared, wrong } = timing
  const { bytes = null, busFactor = null } = head
  const rate = bytes === null ? null : bytes / p50Seconds / 1e9
  return {
    bench: head.bench,
    case: head.case,
    tensors: head.tensors ?? null,
    bytes,
    runs,
    p50_s: p50Seconds,
    p99_s: p99Seconds,
    gb_per_s: rate,
    bus_gb_per_s: rate === null || busFactor === null ? null : rate * busFactor,
    limit_gb_per_s: head.limitGbPerSecond ?? null,
    device_bytes: null,
    host_bytes: null,
    copies: null,
    compared,
    wrong,
    claims: [],
  }
}
