import { type } from 'arktype'
import { Count, DialectName, Elapsed, Rank } from './bounds.ts'
import { CheckpointSummary } from './checkpoint-schemas.ts'
import { EngineMethodUsed } from './update-schemas.ts'

/** Where a rate comes from that plans are made with. */
export const RateOrigin = type("'default' | 'measured' | 'learnt'")
export type RateOrigin = typeof RateOrigin.infer

/** A rate that new plans are made with. */
export const PlanRate = type({ bytes_per_second: 'number > 0', from: RateOrigin })
export type PlanRate = typeof PlanRate.infer

/** What new plans count on for an engine: of each bucket, of each tensor, of its bytes. */
export const EnginePlanRates = type({
  bucket_s: Elapsed,
  tensor_s: Elapsed,
  bytes_per_second: 'number > 0',
  from: RateOrigin,
})
export type EnginePlanRates = typeof EnginePlanRates.infer

/** The daemons that work together, as one of them sees them. */
export const ClusterStatus = type({
  node_rank: Count,
  nodes: Count,
  /** Whether this daemon is the leader. */
  leader: 'boolean',
  /** Ascends with every change of the members. */
  epoch: Count,
  /** Daemons that have joined, the leader included and guests not; 0: a follower does not know, for there is no leader. */
  joined: Count,
  /** Of a follower: the first of its own ranks, as the leader numbers all; absent: it was not told yet. */
  'first_rank?': Count,
  /** Of the leader: the followers that have joined. Of a follower: the leader, when it has joined. */
  peers: type({
    node_rank: Count,
    host: 'string',
    ranks: type({ device: Count, kind: 'string', uuid: 'string' }).array(),
    session: Count,
  }).array(),
  /**
   * Daemons that no update can count on, and why: of a follower without a leader that one. `ranks`: the numbers that it keeps; empty:
   * it was never here. Absent: a follower's leader has not answered soon.
   */
  'missing?': type({ node_rank: Count, message: 'string', ranks: Rank.array() }).array(),
})
export type ClusterStatus = typeof ClusterStatus.infer

/** `GET /v1/status`. */
export const StatusAnswer = type({
  version: 'string',
  pid: Count,
  devices: type({
    index: Count,
    name: 'string',
    uuid: 'string',
    free_bytes: Count,
    total_bytes: Count,
    /** Where its rank's thread and memory are, on a machine with several NUMA nodes. */
    'numa_node?': Count,
    /** Pinned host memory to the device. */
    h2d: PlanRate,
  }).array(),
  /**
   * `key` is the engine worker's in a map: `GPU-<uuid>`, or `GPU-<uuid>#<rank>` where ranks share a
   * device.
   */
  ranks: type({ rank: Rank, device: Count, key: 'string' }).array(),
  peers: 'unknown[]',
  /** Absent: the daemon works alone. */
  'cluster?': ClusterStatus,
  engines: type({
    url: 'string',
    dialect: DialectName.or('null'),
    /** Absent: by a worker that speaks checkpoint-engine's protocol, as far as is known. */
    'method?': EngineMethodUsed,
    torn: 'boolean',
    /** It has taken an update of this daemon whole, the last of them as `version`. */
    updated: 'boolean',
    'engine_restart_needed?': 'boolean',
    version: 'string | null',
    rates: EnginePlanRates,
  }).array(),
  /** Among all ranks. */
  broadcast: PlanRate,
  memory: {
    pinned_bytes: Count,
    budget_bytes: Count,
    /** Rings that an engine may still read. */
    quarantined_bytes: Count,
    checkpoints: CheckpointSummary.array(),
  },
  running_update: 'string | null',
  queued: Count,
})
export type StatusAnswer = typeof StatusAnswer.infer
