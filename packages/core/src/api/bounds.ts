import { type } from 'arktype'
import { ERROR_STATUS, type ErrorCode } from './errors.ts'

/** Seconds that an update may take when its request does not say. */
export const UPDATE_TIMEOUT_SECONDS = 300
/** Seconds that an engine worker may take to map the ring when the request does not say. */
export const OPEN_TIMEOUT_SECONDS = 60
/** Seconds that pausing an engine may take when the request does not say. */
export const PAUSE_TIMEOUT_SECONDS = 60

/** The most ranks of one update group. */
export const RANKS_MAX = 65_536
/**
 * The most files of one registration, shared-memory regions of one trainer, tensors of one region.
 */
export const FILES_MAX = 65_536
export const BUFFERS_MAX = 4096
export const TENSORS_MAX = 4_194_304

const WEEK_SECONDS = 604_800

/** A count, a size or an offset that JavaScript can hold exactly. */
export const Count = type('0 <= number.integer <= 9007199254740991')
export const Seconds = type(`0 < number <= ${WEEK_SECONDS}`)
/** A span of time in an answer. */
export const Elapsed = type('number >= 0')
export const Rank = type(`0 <= number.integer < ${RANKS_MAX}`)
export const Ranks = Rank.array().atMostLength(RANKS_MAX)
/** A path of the daemon's host: Linux takes at most 4095 bytes. */
export const Path = type('1 <= string <= 4095').and(
  // oxlint-disable-next-line no-control-regex -- this one is to be refused
  type(/^[^\u0000]*$/).describe('a path without NUL characters'),
)
export const Url = type('1 <= string <= 2048')
/** What the user calls a version; free text. */
export const Version = type('1 <= string <= 255')
/** Id of an update: in an URL's path, in file names and in logs. */
export const UpdateId = type(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/).describe(
  'an id of at most 128 letters, digits, dots, dashes and underscores',
)
/** Name of a checkpoint, as it stands (decoded) in a route's path. */
// oxlint-disable-next-line no-control-regex -- \p{Cc} is not known to every reader of a JSON Schema
export const CheckpointName = type(/^[^\u0000-\u001f\u007f-\u009f/]{1,255}$/).describe(
  'a name of 1 to 255 characters without slashes and control characters',
)
/** Name of a dtype in safetensors' spelling (`BF16`) or torch's (`torch.bfloat16`). */
export const DtypeName = type('1 <= string <= 64')
/** safetensors sets no limit; numpy and torch stop at 64 dimensions. */
export const Shape = Count.array().atMostLength(64)
export const TensorName = type('1 <= string <= 4096')

/** vLLM's own weight transfer in place of a worker extension's method. */
export const NATIVE_IPC = 'native-ipc'

/** A method's name, as vLLM's `/collective_rpc` takes it, or {@link NATIVE_IPC}. */
export const EngineMethod = type(/^([A-Za-z_][A-Za-z0-9_]{0,127}|native-ipc)$/).describe(
  'a name of at most 128 letters, digits and underscores, or native-ipc',
)

export const DialectName = type("'D1' | 'D2' | 'D3' | 'D4'")
export const EngineKind = type("'auto' | 'vllm' | 'sglang' | 'lmdeploy'")
export const PhaseName = type(
  "'register' | 'gather' | 'plan' | 'pause' | 'open' | 'transfer' | 'release' | 'post' | 'resume'",
)
export const ErrorCodeName = type.enumerated(...(Object.keys(ERROR_STATUS) as ErrorCode[]))

/** {@link import('./errors.ts').Failure} on the wire. */
export const FailureBody = type({
  code: ErrorCodeName,
  message: 'string',
  'rank?': Rank,
  'phase?': PhaseName,
  'tensor?': 'string',
  'update_id?': 'string',
})

/**
 * Body of every answer that is not a success. checkpoint-engine's clients look at the HTTP status
 * only.
 */
export const ErrorBody = type({ error: FailureBody })
export type ErrorBody = typeof ErrorBody.infer
