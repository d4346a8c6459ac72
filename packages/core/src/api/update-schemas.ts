import { type } from 'arktype'
import {
  Count,
  DialectName,
  Elapsed,
  EngineKind,
  EngineMethod,
  FailureBody,
  PhaseName,
  RANKS_MAX,
  Ranks,
  Path,
  Seconds,
  UpdateId,
  Url,
  Version,
} from './bounds.ts'

/** One engine of an update: the ranks are global ones, in the order of the engine's workers. */
export const EngineTarget = type({
  '+': 'reject',
  url: Url,
  ranks: Ranks,
  /** The Unix socket that the engine listens at. */
  'uds?': Path,
  'engine?': EngineKind,
})
export type EngineTarget = typeof EngineTarget.infer

/**
 * `POST /v1/checkpoints/:name/update`. The first five are checkpoint-engine's, with its defaults:
 * `ranks` [] (all), `update_url` null, `inference_group_ranks` [] (all), `timeout` 300 s, `uds`
 * null. They are the form with one engine of `engines`.
 */
export const UpdateRequest = type({
  '+': 'reject',
  'ranks?': Ranks,
  'update_url?': Url.or('null'),
  'inference_group_ranks?': Ranks,
  /** Seconds for the whole update. */
  'timeout?': Seconds,
  'uds?': Path.or('null'),
  'engines?': EngineTarget.array().atMostLength(RANKS_MAX),
  'engine?': EngineKind,
  /** Method of vLLM's `/collective_rpc` to call, or `native-ipc`: its own weight transfer through CUDA IPC. Absent: whichever it has. */
  'engine_method?': EngineMethod,
  'mode?': "'auto' | 'pipelined' | 'serial' | 'direct'",
  'pause?': "'none' | 'wait' | 'keep' | 'abort'",
  'pause_timeout?': Seconds,
  /** Seconds until every engine worker has mapped the ring; 60 when absent. */
  'open_timeout?': Seconds,
  'require?': "'all' | 'survivors'",
  'if_busy?': "'wait' | 'fail'",
  'update_id?': UpdateId,
  /** false: 202 with the id at once. */
  'wait?': 'boolean',
  'weight_version?': Version,
  /** The only version of the checkpoint that is wanted: another one fails the update. */
  'version?': Version,
})
export type UpdateRequest = typeof UpdateRequest.infer

/** What workers of `ckpt_worker` say of how they took an update, over all of them. */
export const ReloadCounts = type({
  /** Tensors that were brought to their places as the engine had once loaded them. */
  replayed: Count,
  /** Tensors that the engine's own code has loaded. */
  ordinary: Count,
  /** Why tensors have to be loaded so, and how many; none: they are replayed the next time. */
  reasons: 'Record<string, number>',
})
export type ReloadCounts = typeof ReloadCounts.infer

/** How an engine that has no worker extension takes updates: by vLLM's own weight transfer. */
export const EngineMethodUsed = type("'native-ipc'")

export const EngineReport = type({
  url: 'string',
  dialect: DialectName.or('null'),
  /** Absent: by a worker that speaks checkpoint-engine's protocol. */
  'method?': EngineMethodUsed,
  ranks: Ranks,
  result: "'ok' | 'failed' | 'not_contacted'",
  /** It holds a part of an update. */
  torn: 'boolean',
  /** It is torn and could not be paused. */
  'serving_torn?': 'boolean',
  'engine_restart_needed?': 'boolean',
  /** Only of an engine with our worker extension. */
  'reload?': ReloadCounts,
  /**
   * The update went well as far as anybody was told, and the engine answers so also when what it does with its weights afterwards has
   * failed: SGLang, unless its updates are taken by our worker, which fails them then.
   */
  'post_hook?': "'unknown'",
  'error?': FailureBody,
})
export type EngineReport = typeof EngineReport.infer

const Stage = type({ busy_s: Elapsed, bytes: Count })

export const UpdateReport = type({
  update_id: 'string',
  checkpoint: 'string',
  version: 'string | null',
  mode: "'pipelined' | 'serial' | 'direct'",
  mode_reason: 'string',
  ranks: Count,
  tensors: Count,
  bytes: Count,
  buckets: Count,
  ring_bytes: Count,
  bucket_bytes: Count,
  gb_per_s: Elapsed,
  seconds: {
    total: Elapsed,
    gather: Elapsed,
    plan: Elapsed,
    open: Elapsed,
    transfer: Elapsed,
    release: Elapsed,
    post: Elapsed,
    pause: Elapsed,
    resume: Elapsed,
  },
  /** `read`: files into host memory, where that went on during the update. */
  stages: { 'read?': Stage, h2d: Stage, broadcast: Stage, reload: Stage },
  /** What was read out of other hosts' memory, in a direct update by each host once, and how: a part of the stage h2d, whose `busy_s` has the reading too: `rdma`, `cma`, `shm` or `emulated` (TCP). */
  'p2p?': { bytes: Count, transports: 'string[]' },
  /**
   * The daemon's own part of a bucket, over all ranks: from the wake-up that brings the engine's reply, or
   * the end of the bucket's copies if that comes later, until its tensor list is sent. Absent: nothing was sent.
   */
  'turnaround?': { p50_s: Elapsed, p99_s: Elapsed },
  device_bytes: { before: Count, peak: Count, after: Count },
  engines: EngineReport.array(),
})
export type UpdateReport = typeof UpdateReport.infer

/** `GET /v1/updates/:id`, and the 202 of an update that is not waited for. */
export const UpdateState = type({
  update_id: 'string',
  checkpoint: 'string',
  state: "'queued' | 'running' | 'done' | 'failed'",
  phase: PhaseName.or('null'),
  buckets_done: Count,
  buckets: Count,
  bytes_done: Count,
  bytes: Count,
  /** ISO 8601; null while it waits its turn. */
  started_at: 'string | null',
  'report?': UpdateReport,
  'error?': FailureBody,
  'engines?': EngineReport.array(),
  /**
   * Key of an engine worker to the address it connects to, for whoever starts the workers itself.
   */
  'map?': 'Record<string, string>',
})
export type UpdateState = typeof UpdateState.infer

/**
 * One server-sent event of `GET /v1/updates/:id/events`: `event` is its name, the whole its `data:`
 * as JSON.
 */
export const UpdateEvent = UpdateState.and({
  event: "'phase' | 'progress' | 'map' | 'done' | 'failed'",
})
export type UpdateEvent = typeof UpdateEvent.infer

/** `GET /v1/updates/:id/trace`: what Perfetto and `chrome://tracing` open. */
export const TraceAnswer = type({ displayTimeUnit: "'ms'", traceEvents: 'object[]' })
export type TraceAnswer = typeof TraceAnswer.infer

/** `POST /v1/updates/:id/abort`; an empty body will do. */
export const AbortRequest = type({ '+': 'reject', 'reason?': 'string <= 1024' })
export type AbortRequest = typeof AbortRequest.infer
