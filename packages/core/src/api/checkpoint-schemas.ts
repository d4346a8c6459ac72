import { type } from 'arktype'
import {
  BUFFERS_MAX,
  Count,
  DtypeName,
  Elapsed,
  FILES_MAX,
  Path,
  Seconds,
  Shape,
  TENSORS_MAX,
  TensorName,
  Version,
} from './bounds.ts'

/** `POST /v1/checkpoints/:name/files`; checkpoint-engine's clients send `files` alone. */
export const RegisterRequest = type({
  '+': 'reject',
  files: Path.array().atMostLength(FILES_MAX),
  'replace?': 'boolean',
  'in_place?': 'boolean',
  'consume?': 'boolean',
  'version?': Version,
  /**
   * false: 202 as soon as the tensors are known and memory is taken. An update may follow at once and
   * sends the bytes as they arrive; the files must stay as they are until the checkpoint is complete.
   * A rank's part is waited for all the same.
   */
  'wait?': 'boolean',
})
export type RegisterRequest = typeof RegisterRequest.infer

/** What went so that something new fits into host memory. */
const DROPPED = {
  /** The version held before was dropped first, because host memory does not hold both. */
  'previous_dropped?': 'boolean',
  /** Other checkpoints that were dropped first, which `ckpt serve --evict` allows. */
  'evicted?': 'string[]',
} as const

/**
 * Files that came into host memory in one way for one reason: `read` through the page cache, `direct`
 * past it (O_DIRECT), `mapped` in place.
 */
export const FileReads = type({
  how: "'read' | 'direct' | 'mapped'",
  files: Count,
  /** Of the tensors that are taken from them. */
  bytes: Count,
  /** Such as `not cached`. */
  reason: 'string',
})
export type FileReads = typeof FileReads.infer

export const RegisterAnswer = type({
  name: 'string',
  version: 'string | null',
  tensors: Count,
  bytes: Count,
  seconds: Elapsed,
  /** The bytes are still being read: 202. */
  'reading?': 'boolean',
  /** How the files are read; what is small (256 KiB) goes through the page cache also where it says `direct`. */
  'reads?': FileReads.array(),
  ...DROPPED,
  /** What went otherwise than asked, such as `lease refused, read into memory: PATH`. */
  'notes?': 'string[]',
})
export type RegisterAnswer = typeof RegisterAnswer.infer

/**
 * `POST /v1/checkpoints/:name/pull`, over a Unix socket only: a copy of what the daemons of a cluster
 * hold, which this one does not belong to, is read out of their memory.
 */
export const PullRequest = type({
  '+': 'reject',
  /** Where the leader of the cluster listens: `HOST:PORT`. */
  leader: '1 <= string <= 300',
  /** File of the daemon's host with the token that all daemons of the cluster have. */
  cluster_token_file: Path,
  /** Another one fails. */
  'version?': Version,
  'replace?': 'boolean',
  /** Until the leader has answered. */
  'join_timeout?': Seconds,
  /** All of it may take. */
  'timeout?': Seconds,
})
export type PullRequest = typeof PullRequest.infer

/** `DELETE /v1/checkpoints/:name`: 200 also when there was none. */
export const DropAnswer = type({ name: 'string', existed: 'boolean' })
export type DropAnswer = typeof DropAnswer.infer

/** `POST /v1/checkpoints/:name/gather-metas`. */
export const GatherAnswer = type({
  digest: 'string',
  ranks: Count,
  tensors: Count,
  bytes: Count,
  seconds: Elapsed,
})
export type GatherAnswer = typeof GatherAnswer.infer

export const CheckpointSummary = type({
  name: 'string',
  version: 'string | null',
  state: "'complete' | 'reading' | 'invalid'",
  tensors: Count,
  bytes: Count,
  digest: 'string',
  in_place: 'boolean',
  files: 'string[]',
  /** An update holds it. */
  in_use: 'boolean',
})
export type CheckpointSummary = typeof CheckpointSummary.infer

/** `GET /v1/checkpoints`. */
export const CheckpointsAnswer = type({ checkpoints: CheckpointSummary.array() })
export type CheckpointsAnswer = typeof CheckpointsAnswer.infer

/** `GET /v1/checkpoints/:name`. */
export const CheckpointDetail = CheckpointSummary.and({
  tensor_list: type({ name: 'string', dtype: 'string', shape: Shape, bytes: Count }).array(),
})
export type CheckpointDetail = typeof CheckpointDetail.infer

/**
 * `POST /v1/checkpoints/:name/buffers`: shared-memory regions that a trainer writes its tensors
 * into.
 */
export const BuffersRequest = type({
  '+': 'reject',
  bytes: type('1 <= number.integer <= 9007199254740991')
    .array()
    .atLeastLength(1)
    .atMostLength(BUFFERS_MAX),
  /**
   * The answer's connection stays open after its one line of JSON. When it ends, in whatever way,
   * the buffers that hold no registered version are freed: a trainer that dies leaves nothing.
   */
  'hold?': 'boolean',
  /**
   * As in the request for the tensors: false: a name that is held is refused now; true: when host
   * memory does not hold both, the version that is held goes first.
   */
  'replace?': 'boolean',
})
export type BuffersRequest = typeof BuffersRequest.infer

export const BuffersAnswer = type({
  buffers: type({ id: 'string', path: 'string', bytes: Count }).array(),
  ...DROPPED,
})
export type BuffersAnswer = typeof BuffersAnswer.infer

/**
 * `POST /v1/checkpoints/:name/tensors`: what the trainer has written where. Offsets in bytes within
 * the region.
 */
export const TensorsRequest = type({
  '+': 'reject',
  buffers: type({
    '+': 'reject',
    id: '1 <= string <= 255',
    tensors: type({
      '+': 'reject',
      name: TensorName,
      dtype: DtypeName,
      shape: Shape,
      offset: Count,
    })
      .array()
      .atMostLength(TENSORS_MAX),
  })
    .array()
    .atMostLength(BUFFERS_MAX),
  'replace?': 'boolean',
  'version?': Version,
})
export type TensorsRequest = typeof TensorsRequest.infer
