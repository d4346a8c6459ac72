import { assert } from '../checkpoint/assert.ts'
import type { TensorTable } from '../checkpoint/table.ts'
import type { CostRates } from '../plan/cost.ts'
import type { Plan } from '../plan/plan.ts'
import { EventQueue } from './event-queue.ts'
import { Executor } from './executor.ts'
import type { ExecutorAction, ExecutorEvent } from './executor-types.ts'

/** One rank of a simulated cluster and its engine worker. */
export interface ClusterRank {
  readonly rank: number
  /** Ranks with the same device share its link to host memory. */
  readonly device: number
  readonly h2dBytesPerSecond: number
  readonly reloadBytesPerSecond: number
  readonly bucketSeconds: number
  readonly tensorSeconds: number
}

export interface Cluster {
  readonly ranks: readonly ClusterRank[]
  /** Of one broadcast to all ranks; they follow each other. */
  readonly broadcastBytesPerSecond: number
  /** What a broadcast takes beside its bytes. */
  readonly broadcastSeconds: number
  /** From the first copy until every engine has opened its ring: no list is sent before. Absent: 0. */
  readonly openSeconds?: number
}

export type Stage = 'h2d' | 'broadcast' | 'reload'

/**
 * Seconds added to one piece of work: a segment's copy on `rank`, a segment's broadcast (`rank` is
 * its root), or a bucket's reload on `rank`. Must answer the same question the same way.
 */
export type Jitter = (stage: Stage, rank: number, index: number) => number

/** Told of each piece of work, in no order: the same `rank` and `index` as for {@link Jitter}; seconds from the beginning. */
export type SpanListener = (
  stage: Stage,
  rank: number,
  index: number,
  beginSeconds: number,
  endSeconds: number,
) => void

export interface StageTimeline {
  /** Of the device or rank that worked longest; of all broadcasts. */
  readonly busySeconds: number
  /** Copied from host memory; broadcast; taken by one engine. */
  readonly bytes: number
}

export interface Timeline {
  /** Until the last engine has acknowledged the last bucket. */
  readonly totalSeconds: number
  readonly stages: Readonly<Record<Stage, StageTimeline>>
  /** Per bucket: when it was complete in the ring of the last rank. */
  readonly copiedSeconds: Float64Array
  /** Per bucket: when the last engine had taken it. */
  readonly ackedSeconds: Float64Array
}

/** A cluster of equal ranks, each with a device of its own. */
export function uniformCluster(ranks: readonly number[], rates: CostRates): Cluster {
  const { h2dBytesPerSecond, reloadBytesPerSecond, bucketSeconds, tensorSeconds } = rates
  const common = { h2dBytesPerSecond, reloadBytesPerSecond, bucketSeconds, tensorSeconds }
  return {
    ranks: ranks.map((rank) => ({ rank, device: rank, ...common })),
    broadcastBytesPerSecond: rates.broadcastBytesPerSecond,
    broadcastSeconds: 0,
  }
}

/**
 * Runs the executors of all ranks on a simulated clock and transport and tells when what happened.
 *
 * Ranks whose engines are equal do the same at the same times, because a broadcast is complete
 * everywhere at once: without jitter one executor stands for all of them, so that 10,000 ranks cost
 * no more than one.
 *
 * @throws AssertionError when the schedule stops before its end (a deadlock)
 */
export function simulate(
  plan: Plan,
  table: TensorTable,
  cluster: Cluster,
  jitter?: Jitter,
  listener: SpanListener = () => {},
): Timeline {
  return new Simulation(plan, table, cluster, jitter, listener).run()
}

/** Ranks that one executor stands for. */
interface Group {
  readonly executor: Executor
  readonly sample: ClusterRank
  finished: boolean
}

interface Arrival {
  readonly group: Group
  readonly event: Exclude<ExecutorEvent, { type: 'readable' }>
}

/** What is known of a segment. */
interface Flight {
  /** Groups that have not enqueued its broadcast yet. */
  missing: number
  /** When the last of them did, or its copy was complete. */
  readySeconds: number
  /** When its bytes are in every ring; undefined until that is known. */
  doneSeconds: number | undefined
  /** Events that wait for it. */
  readonly records: { readonly group: Group; readonly bucket: number }[]
}

class Simulation {
  private readonly queue = new EventQueue<Arrival>()
  private readonly groups: Group[]
  private readonly flights: Flight[]
  private readonly byRank: ReadonlyMap<number, ClusterRank>
  private readonly deviceFree = new Map<number, number>()
  private readonly deviceBusy = new Map<number, number>()
  private readonly reloadBusy = new Map<Group, number>()
  private readonly copiedSeconds: Float64Array
  private readonly ackedSeconds: Float64Array
  private readonly bucketTensorBytes: Float64Array
  private readonly bucketOfSegment: Uint32Array
  private collectiveFree = 0
  private collectiveBusy = 0
  private collectiveBytes = 0
  private totalSeconds = 0

  constructor(
    private readonly plan: Plan,
    table: TensorTable,
    private readonly cluster: Cluster,
    private readonly jitter: Jitter | undefined,
    private readonly listener: SpanListener,
  ) {
    this.byRank = new Map(cluster.ranks.map((rank) => [rank.rank, rank]))
    this.groups = makeGroups(plan, cluster, jitter === undefined)
    const missing = this.groups.length
    this.flights = Array.from({ length: plan.segmentCount }, () => {
      return { missing, readySeconds: 0, doneSeconds: undefined, records: [] }
    })
    this.copiedSeconds = new Float64Array(plan.bucketCount)
    this.ackedSeconds = new Float64Array(plan.bucketCount)
    this.bucketTensorBytes = new Float64Array(plan.bucketCount)
    this.bucketOfSegment = new Uint32Array(plan.segmentCount)
    for (let g = 0; g < plan.bucketCount; g++) {
      const [first, end] = [plan.bucketFirstTensor[g], plan.bucketFirstTensor[g + 1]]
      const tensors = plan.order.subarray(first, end)
      this.bucketTensorBytes[g] = tensors.reduce((sum, i) => sum + (table.bytes[i] as number), 0)
      this.bucketOfSegment.fill(g, plan.bucketFirstSegment[g], plan.bucketFirstSegment[g + 1])
    }
  }

  run(): Timeline {
    for (const group of this.groups) this.perform(group, group.executor.start(), 0)
    for (let next = this.queue.pop(); next !== undefined; next = this.queue.pop()) {
      const { group, event } = next.event
      const seconds = event.type === 'copied' ? this.copiedSeconds : this.ackedSeconds
      seconds[event.bucket] = Math.max(seconds[event.bucket] as number, next.seconds)
      this.perform(group, group.executor.step(event), next.seconds)
    }
    const stuck = this.groups.find((group) => !group.finished)
    assert(stuck === undefined, `rank ${stuck?.sample.rank} stops at ${stuck?.executor.acked}`)
    return this.timeline()
  }

  private perform(group: Group, actions: readonly ExecutorAction[], now: number): void {
    for (const action of actions) {
      if (action.type === 'copy') this.copy(action.segment, now)
      else if (action.type === 'broadcast') this.broadcast(action.segment, now)
      else if (action.type === 'record') this.record(group, action.bucket, now)
      else if (action.type === 'announce') this.announce(group, action.bucket, now)
      else {
        group.finished = true
        this.totalSeconds = Math.max(this.totalSeconds, now)
      }
    }
  }

  private copy(segment: number, now: number): void {
    const root = this.plan.bucketRank[this.bucketOfSegment[segment] as number] as number
    const { device, h2dBytesPerSecond } = this.byRank.get(root) as ClusterRank
    const bytes = this.plan.segmentSize[segment] as number
    const took = bytes / h2dBytesPerSecond + this.delay('h2d', root, segment)
    const done = Math.max(now, this.deviceFree.get(device) ?? 0) + took
    this.deviceFree.set(device, done)
    this.listener('h2d', root, segment, done - took, done)
    this.deviceBusy.set(device, (this.deviceBusy.get(device) ?? 0) + took)
    const flight = this.flights[segment] as Flight
    flight.readySeconds = Math.max(flight.readySeconds, done)
    if (this.cluster.ranks.length === 1) this.complete(flight, done)
  }

  private broadcast(segment: number, now: number): void {
    const flight = this.flights[segment] as Flight
    flight.readySeconds = Math.max(flight.readySeconds, now)
    if (--flight.missing > 0) return
    const root = this.plan.bucketRank[this.bucketOfSegment[segment] as number] as number
    const bytes = this.plan.segmentSize[segment] as number
    const { broadcastSeconds, broadcastBytesPerSecond } = this.cluster
    const work = broadcastSeconds + bytes / broadcastBytesPerSecond
    const took = work + this.delay('broadcast', root, segment)
    this.collectiveFree = Math.max(this.collectiveFree, flight.readySeconds) + took
    this.collectiveBusy += took
    this.collectiveBytes += bytes
    this.listener('broadcast', root, segment, this.collectiveFree - took, this.collectiveFree)
    this.complete(flight, this.collectiveFree)
  }

  private complete(flight: Flight, seconds: number): void {
    flight.doneSeconds = seconds
    for (const { group, bucket } of flight.records.splice(0)) this.copied(group, bucket, seconds)
  }

  /** The event of a bucket is complete with the last segment enqueued before it. */
  private record(group: Group, bucket: number, now: number): void {
    const last = (this.plan.bucketFirstSegment[bucket + 1] as number) - 1
    const flight = this.flights[last]
    if (flight === undefined) this.copied(group, bucket, now)
    else if (flight.doneSeconds === undefined) flight.records.push({ group, bucket })
    else this.copied(group, bucket, Math.max(now, flight.doneSeconds))
  }

  private copied(group: Group, bucket: number, seconds: number): void {
    this.queue.push(seconds, { group, event: { type: 'copied', bucket } })
  }

  private announce(group: Group, bucket: number, now: number): void {
    const { plan } = this
    const { rank, reloadBytesPerSecond, tensorSeconds, bucketSeconds } = group.sample
    const first = plan.bucketFirstTensor[bucket] as number
    const tensorCount = (plan.bucketFirstTensor[bucket + 1] as number) - first
    const bytes = this.bucketTensorBytes[bucket] as number
    const work = bucketSeconds + tensorCount * tensorSeconds + bytes / reloadBytesPerSecond
    const took = work + this.delay('reload', rank, bucket)
    const begin = Math.max(now, this.cluster.openSeconds ?? 0)
    this.reloadBusy.set(group, (this.reloadBusy.get(group) ?? 0) + took)
    this.listener('reload', rank, bucket, begin, begin + took)
    this.queue.push(begin + took, { group, event: { type: 'acked', bucket } })
  }

  private delay(stage: Stage, rank: number, index: number): number {
    return this.jitter === undefined ? 0 : this.jitter(stage, rank, index)
  }

  private timeline(): Timeline {
    const copiedBytes = this.plan.segmentSize.reduce((sum, bytes) => sum + bytes, 0)
    const most = (seconds: Map<unknown, number>): number => Math.max(0, ...seconds.values())
    return {
      totalSeconds: this.totalSeconds,
      stages: {
        h2d: { busySeconds: most(this.deviceBusy), bytes: copiedBytes },
        broadcast: { busySeconds: this.collectiveBusy, bytes: this.collectiveBytes },
        reload: { busySeconds: most(this.reloadBusy), bytes: this.plan.totalBytes },
      },
      copiedSeconds: this.copiedSeconds,
      ackedSeconds: this.ackedSeconds,
    }
  }
}

/** One group per kind of engine, or per rank when they are not to be merged. */
function makeGroups(plan: Plan, cluster: Cluster, merge: boolean): Group[] {
  const kinds = new Map<string, ClusterRank[]>()
  for (const rank of cluster.ranks) {
    const { reloadBytesPerSecond, bucketSeconds, tensorSeconds } = rank
    const engine = `${reloadBytesPerSecond} ${bucketSeconds} ${tensorSeconds}`
    const kind = merge ? engine : `${rank.rank}`
    const members = kinds.get(kind)
    if (members === undefined) kinds.set(kind, [rank])
    else members.push(rank)
  }
  const ranks = cluster.ranks.map((rank) => rank.rank)
  return Array.from(kinds.values(), (members) => {
    const sample = members[0] as ClusterRank
    const executor = new Executor(standIn(plan, members, sample.rank), sample.rank, ranks)
    return { executor, sample, finished: false }
  })
}

/**
 * The plan as the one rank sees it that stands for all members: what any of them copies, it copies.
 */
function standIn(plan: Plan, members: readonly ClusterRank[], rank: number): Plan {
  if (members.length === 1) return plan
  const set = new Set(members.map((member) => member.rank))
  const bucketRank = plan.bucketRank.map((owner) => (set.has(owner) ? rank : owner))
  return { ...plan, bucketRank }
}
