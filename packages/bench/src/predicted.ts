import { type } from 'arktype'
import { DEFAULT_RATES } from '@ckpt/core/plan/cost'
import { type Predicted, type PredictionInput, predict } from 'ckpt/cli/plan-prediction'
import { workloads } from './workloads.ts'

const GIB = 2 ** 30

/** A prediction where the planner's defaults hold but for what is said. */
export function predictWith(
  said: Partial<PredictionInput> & Pick<PredictionInput, 'tensors'>,
): Predicted {
  const { devicesPerHost = 1 } = said
  const networkBytesPerSecond = 50e9 * devicesPerHost
  const cluster = {
    hosts: 1,
    devicesPerHost,
    tensorParallel: devicesPerHost,
    networkBytesPerSecond,
  }
  const memory = { freeBytes: 40 * GIB, fraction: 0.9, ringBytes: null, bucketBytes: null }
  return predict({ ...cluster, ...memory, rates: DEFAULT_RATES, mode: 'auto', ...said })
}

/** What is read of a document of `scripts/gpu-vllm --json`. */
const VllmDocument = type({
  header: { date: 'string', device: 'string' },
  model: "'dense' | 'moe'",
  limit_gb_per_s: 'number > 0',
  rows: type({
    way: 'string',
    round: 'number.integer >= 0',
    seconds: 'number > 0',
    busy_us_per_tensor: 'number | null',
    'report?': 'unknown',
  }).array(),
})

const RingReport = type({
  report: {
    mode: "'pipelined' | 'serial'",
    ring_bytes: 'number > 0',
    bucket_bytes: 'number > 0',
    seconds: { transfer: 'number', release: 'number' },
    turnaround: { p50_s: 'number' },
  },
})

/** An update of a real engine, and what the simulation makes of the rates of the same run. */
export interface Compared {
  /** `dense, recorded`. */
  readonly what: string
  readonly round: number
  /** From the first copy until the engine has taken the last bucket, and of the whole call. */
  readonly measuredSeconds: number
  readonly callSeconds: number
  readonly predictedSeconds: number
}

/**
 * The updates through a ring of a document of `scripts/gpu-vllm`, but for the first of each way, which takes what later ones keep.
 *
 * @throws Error that begins with `path` when it is none
 */
export function comparisons(path: string, text: string): Compared[] {
  const { model, limit_gb_per_s, rows, workload } = readVllm(path, text)
  return rows.flatMap((row): Compared[] => {
    const read = RingReport(row.report)
    const { way, round, busy_us_per_tensor } = row
    if (round === 0 || busy_us_per_tensor === null || read instanceof type.errors) return []
    const { mode, ring_bytes, bucket_bytes, seconds, turnaround } = read.report
    const rates = {
      ...DEFAULT_RATES,
      h2dBytesPerSecond: limit_gb_per_s * 1e9,
      // it is in the time of a tensor
      reloadBytesPerSecond: Number.MAX_SAFE_INTEGER,
      tensorSeconds: busy_us_per_tensor / 1e6,
      bucketSeconds: turnaround.p50_s,
    }
    const sizes = { mode, ringBytes: ring_bytes, bucketBytes: bucket_bytes }
    const { prediction } = predictWith({ tensors: workload.tensors, rates, ...sizes })
    return [
      {
        what: `${model}, ${way}`,
        round,
        measuredSeconds: seconds.transfer + seconds.release,
        callSeconds: row.seconds,
        predictedSeconds: prediction.seconds,
      },
    ]
  })
}

function readVllm(path: string, text: string) {
  const document = VllmDocument(JSON.parse(text))
  if (document instanceof type.errors) throw new Error(`${path}: ${document.summary}`)
  const [workload] = workloads([], [document.model === 'moe' ? 'moe-bf16' : document.model])
  if (workload === undefined) throw new Error(`${path}: no tensors of ${document.model}`)
  return { ...document, workload }
}

/** Direct updates of a real engine, and what the rate of its link says of them. */
export interface ComparedDirect {
  readonly what: string
  readonly runs: number
  /** The median of the whole calls. */
  readonly measuredSeconds: number
  readonly predictedSeconds: number
}

/**
 * The direct updates of a document of `scripts/gpu-vllm`, but for the first, before which nobody knows where the weights lie.
 *
 * @throws Error that begins with `path` when it is none
 */
export function directComparisons(path: string, text: string): ComparedDirect[] {
  const { model, limit_gb_per_s, rows, workload } = readVllm(path, text)
  const calls = rows
    .filter(({ way, round }) => way === 'direct' && round > 0)
    .map(({ seconds }) => seconds)
    .toSorted((a, b) => a - b)
  const measuredSeconds = calls[calls.length >> 1]
  if (measuredSeconds === undefined) return []
  const rates = { ...DEFAULT_RATES, h2dBytesPerSecond: limit_gb_per_s * 1e9 }
  const { direct } = predictWith({ tensors: workload.tensors, rates }).prediction
  const what = `${model}, direct`
  return [{ what, runs: calls.length, measuredSeconds, predictedSeconds: direct.seconds }]
}

/** What is read of a document of `bun run bench --json --only prediction`. */
const PredictionDocument = type({
  header: { date: 'string' },
  wrong: '0',
  rows: type({
    case: 'string',
    bytes: 'number > 0',
    runs: 'number.integer > 0',
    p50_s: 'number > 0',
    p99_s: 'number > 0',
    limit_gb_per_s: 'number > 0',
    claims: 'object[]',
  }).array(),
})

/** Updates of several daemons, and what the simulation makes of the rates of the same run. */
export interface ComparedCluster {
  readonly what: string
  readonly runs: number
  /** The median, and of the slowest. */
  readonly measuredSeconds: number
  readonly slowestSeconds: number
  readonly predictedSeconds: number
  /** Whether the prediction is to be right. */
  readonly claimed: boolean
}

/** @throws Error that begins with `path` when it is no such document, or something was wrong */
export function clusterComparisons(path: string, text: string): ComparedCluster[] {
  const document = PredictionDocument(JSON.parse(text))
  if (document instanceof type.errors) throw new Error(`${path}: ${document.summary}`)
  return document.rows.map((row) => ({
    what: row.case,
    runs: row.runs,
    measuredSeconds: row.p50_s,
    slowestSeconds: row.p99_s,
    predictedSeconds: row.bytes / row.limit_gb_per_s / 1e9,
    claimed: row.claims.length > 0,
  }))
}
