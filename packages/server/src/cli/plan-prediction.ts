import { CkptError } from '@ckpt/core'
import { arrange } from '@ckpt/core/checkpoint/arrange'
import { buildTable, type TensorRow } from '@ckpt/core/checkpoint/build-table'
import { naturalOrder } from '@ckpt/core/checkpoint/natural-order'
import { stripeOwners } from '@ckpt/core/checkpoint/stripes'
import type { Plan, SourceSpace, TensorTable, TimelineRow } from '@ckpt/core'
import type { CostRates } from '@ckpt/core/plan/cost'
import { makePlan } from '@ckpt/core/plan/make-plan'
import { decideMode, type ModeInput } from '@ckpt/core/plan/mode'
import { predictSlices } from '@ckpt/core/placement/predict-slices'
import { dtypeIndex, tensorBytes } from '@ckpt/core/safetensors/dtypes'
import { simulate, type Stage, type Timeline, uniformCluster } from '@ckpt/core/update/simulate'
import { formatBytes } from './format.ts'
import type { TensorShape } from './model-shapes.ts'

/** Of the time that a stage is busy, for it to be what the update waits for. */
const BOUND_PART = 0.9
/** Devices of a trace. */
const DEVICES_MAX = 64

export interface PredictionInput {
  readonly tensors: readonly TensorShape[]
  /** Daemons that register the checkpoint together. */
  readonly hosts: number
  /** Each is a rank and has a link of its own. */
  readonly devicesPerHost: number
  /** Ranks of one engine: each copies its part of every tensor. */
  readonly tensorParallel: number
  readonly rates: CostRates
  /** Of a host, in each direction, for direct updates. */
  readonly networkBytesPerSecond: number
  /** Free device memory of each rank. */
  readonly freeBytes: number
  readonly fraction: number
  readonly ringBytes: number | null
  readonly bucketBytes: number | null
  readonly mode: ModeInput['mode']
}

/** JSON of `ckpt plan`. */
export interface Prediction {
  readonly ranks: number
  readonly hosts: number
  readonly tensor_parallel: number
  readonly tensors: number
  readonly bytes: number
  readonly largest: { readonly name: string; readonly bytes: number }
  readonly mode: 'pipelined' | 'serial'
  readonly mode_reason: string
  readonly ring_bytes: number
  readonly bucket_bytes: number
  readonly buckets: number
  readonly segments: number
  readonly digest: string
  /** Pinned memory of the host that holds most, all of it and for each of its ranks. */
  readonly host_bytes: { readonly host: number; readonly rank: number }
  /** The stage that takes nearly all of the time; `latency`: none does, they wait for each other. */
  readonly bound_by: Stage | 'latency'
  readonly seconds: number
  readonly gb_per_s: number
  readonly stages: Readonly<Record<Stage, { busy_s: number; bytes: number }>>
  /** Seconds until a tenth, two tenths, ... of the bytes are in the engines. */
  readonly tenths_s: readonly number[]
  /** An update straight into the engines' memory, each rank of which holds an equal slice; the rest is of one through a ring. */
  readonly direct: {
    readonly seconds: number
    readonly gb_per_s: number
    readonly bound_by: 'h2d' | 'network'
    readonly link_bytes: number
    readonly read_bytes: number
    /** `auto` would do it so. */
    readonly chosen: boolean
  }
}

/** A prediction with its timeline. */
export interface Predicted {
  readonly prediction: Prediction
  /** Of the first devices, the broadcasts and one engine worker. */
  readonly rows: readonly TimelineRow[]
}

/**
 * What the planner would do with this model on this cluster and how long it would take: the plan and the executor of a real
 * update, on a simulated clock.
 *
 * @param traced with rows; without there are none
 * @throws CkptError `tensor_too_large` or `device_memory_exhausted` when no ring is possible
 */
export function predict(input: PredictionInput, traced = false): Predicted {
  const { table, sources } = layOutStriped(input.tensors, input.hosts)
  const largest = largestOf(table)
  const totalBytes = table.bytes.reduce((sum, bytes) => sum + bytes, 0)
  const { hosts, devicesPerHost, tensorParallel } = input
  const reloadBytesPerSecond = input.rates.reloadBytesPerSecond * tensorParallel
  const rates = { ...input.rates, reloadBytesPerSecond }
  const decision = decideMode({
    freeBytes: Array.from({ length: hosts * devicesPerHost }, (_, rank) => {
      return { rank, bytes: input.freeBytes }
    }),
    fraction: input.fraction,
    largest,
    totalBytes,
    tensorCount: table.names.length,
    ringBytes: input.ringBytes,
    bucketBytes: input.bucketBytes,
    mode: input.mode,
    rates,
  })
  if (decision.mode === 'refuse') throw CkptError.from(decision.failure)
  const ownerRanks = Array.from({ length: hosts }, (_, host) =>
    Array.from({ length: devicesPerHost }, (_, i) => host * devicesPerHost + i),
  )
  const plan = makePlan({ table, sources, ownerRanks, ...decision })
  const cluster = uniformCluster(ownerRanks.flat(), rates)
  const lanes = traced ? new Lanes(plan) : null
  const timeline = simulate(plan, table, cluster, undefined, (...span) => lanes?.add(...span))
  const hostBytes = Math.max(...sources.map(({ bytes }) => bytes.reduce((sum, b) => sum + b, 0)))
  const stage = (name: Stage) => {
    const { busySeconds, bytes } = timeline.stages[name]
    return { busy_s: busySeconds, bytes }
  }
  const prediction: Prediction = {
    ranks: hosts * devicesPerHost,
    hosts,
    tensor_parallel: tensorParallel,
    tensors: table.names.length,
    bytes: totalBytes,
    largest,
    mode: decision.mode,
    mode_reason: decision.reason,
    ring_bytes: decision.ringBytes,
    bucket_bytes: decision.bucketBytes,
    buckets: plan.bucketCount,
    segments: plan.segmentCount,
    digest: plan.digest,
    host_bytes: { host: hostBytes, rank: hostBytes / devicesPerHost },
    bound_by: boundBy(timeline),
    seconds: timeline.totalSeconds,
    gb_per_s: timeline.totalSeconds > 0 ? totalBytes / timeline.totalSeconds / 1e9 : 0,
    stages: { h2d: stage('h2d'), broadcast: stage('broadcast'), reload: stage('reload') },
    tenths_s: tenths(plan.bucketSize, timeline.ackedSeconds),
    direct: predictDirect({ ...input, rates }, totalBytes, table.names.length),
  }
  return { prediction, rows: lanes?.rows ?? [] }
}

function predictDirect(
  input: PredictionInput,
  totalBytes: number,
  tensorCount: number,
): Prediction['direct'] {
  const p = predictSlices({ ...input, totalBytes, tensorCount }, input.rates)
  return {
    seconds: p.seconds,
    gb_per_s: p.seconds > 0 ? totalBytes / p.seconds / 1e9 : 0,
    bound_by: p.boundBy,
    link_bytes: p.placedBytes,
    read_bytes: p.readBytes,
    chosen: p.isChosen,
  }
}

function boundBy({ totalSeconds, stages }: Timeline): Prediction['bound_by'] {
  const busy = Object.entries(stages) as [Stage, { busySeconds: number }][]
  const [first] = busy.toSorted(([, a], [, b]) => b.busySeconds - a.busySeconds)
  if (first === undefined) return 'latency'
  const [stage, { busySeconds }] = first
  return busySeconds >= BOUND_PART * totalSeconds ? stage : 'latency'
}

/** The spans of a simulation as rows of a trace. */
class Lanes {
  readonly #plan: Plan
  readonly #lanes = new Map<string, { begin: number; end: number; label: string }[]>()

  constructor(plan: Plan) {
    this.#plan = plan
  }

  add(stage: Stage, rank: number, index: number, beginSeconds: number, endSeconds: number): void {
    // the broadcasts are everybody's, and one engine worker stands for all
    const name = stage === 'h2d' ? `h2d of rank ${rank}` : stage
    let lane = this.#lanes.get(name)
    if (lane === undefined) {
      if (this.#lanes.size >= DEVICES_MAX && stage === 'h2d') return
      lane = []
      this.#lanes.set(name, lane)
    }
    const what = stage === 'reload' ? `bucket ${index}` : `segment ${index}`
    const bytes = stage === 'reload' ? this.#plan.bucketSize[index] : this.#plan.segmentSize[index]
    const label = `${what}, ${formatBytes(bytes ?? 0)}`
    lane.push({ begin: beginSeconds * 1000, end: endSeconds * 1000, label })
  }

  get rows(): TimelineRow[] {
    return [...this.#lanes].map(([name, lane]) => {
      const spans = lane.toSorted((a, b) => a.begin - b.begin)
      return {
        group: 'update',
        name,
        spans: Float64Array.from(spans.flatMap(({ begin, end }) => [begin, end])),
        labels: spans.map(({ label }) => label),
      }
    })
  }
}

function largestOf(table: TensorTable): { name: string; bytes: number } {
  let largest = 0
  for (let i = 1; i < table.bytes.length; i++) {
    if (table.bytes[i]! > table.bytes[largest]!) largest = i
  }
  return { name: table.names[largest]!, bytes: table.bytes[largest]! }
}

/** The tensors in the memory of their owners, as so many daemons would place them. */
export function layOutStriped(
  told: readonly TensorShape[],
  hosts: number,
): { table: TensorTable; sources: SourceSpace[] } {
  const order = naturalOrder(told.map(({ name }) => name))
  const tensors = Array.from(order, (i) => told[i] as TensorShape)
  return layOutOwned(tensors, stripeOwners(tensors.map(bytesOf), hosts), hosts)
}

/**
 * The tensors in the memory of the daemons that have registered them.
 *
 * @param tensors in natural order of their names
 * @param owners of each, below `hosts`
 */
export function layOutOwned(
  tensors: readonly TensorShape[],
  owners: ArrayLike<number>,
  hosts: number,
): { table: TensorTable; sources: SourceSpace[] } {
  const bytes = tensors.map(bytesOf)
  const offsets = new Float64Array(tensors.length)
  const owned = Map.groupBy(tensors.keys(), (tensor) => owners[tensor] as number)
  const sources = Array.from({ length: hosts }, (_, owner): SourceSpace => {
    const mine = owned.get(owner) ?? []
    const placed = arrange(mine.map((i) => bytes[i]!))
    mine.forEach((tensor, i) => {
      offsets[tensor] = placed.offsets[i]!
    })
    return { starts: Float64Array.of(0), bytes: Float64Array.of(placed.totalBytes) }
  })
  const rows = tensors.map((tensor, i): TensorRow => {
    const { name, shape } = tensor
    const dtype = dtypeIndex(tensor.dtype)
    return { name, dtype, shape, bytes: bytes[i]!, owner: owners[i]!, offset: offsets[i]! }
  })
  return { table: buildTable(rows), sources }
}

function bytesOf(tensor: TensorShape): number {
  const dtype = dtypeIndex(tensor.dtype)
  const bytes = dtype < 0 ? null : tensorBytes(dtype, tensor.shape)
  if (bytes !== null) return bytes
  const shape = `${tensor.dtype} [${tensor.shape.join(', ')}]`
  throw new CkptError('bad_request', `tensor ${tensor.name}: ${shape} is no tensor of the format`)
}

/** When each tenth of the bytes has been taken by the last engine. */
function tenths(sizes: ArrayLike<number>, ackedSeconds: ArrayLike<number>): number[] {
  let total = 0
  for (let i = 0; i < sizes.length; i++) total += sizes[i]!
  const marks: number[] = []
  let taken = 0
  for (let i = 0; i < sizes.length; i++) {
    taken += sizes[i]!
    while (marks.length < 10 && taken >= (total * (marks.length + 1)) / 10)
      marks.push(ackedSeconds[i]!)
  }
  return marks
}
