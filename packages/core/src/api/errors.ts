/**
 * Every error code that a route, a command or a report can carry, with the HTTP status it answers
 * with.
 */
export const ERROR_STATUS = {
  // the request
  bad_request: 400,
  unauthorized: 401,
  path_not_allowed: 403,
  engine_not_allowed: 403,
  not_found: 404,
  checkpoint_not_found: 404,
  update_not_found: 404,
  checkpoint_exists: 409,
  checkpoint_busy: 409,
  update_running: 409,
  queue_full: 429,
  not_supported: 501,
  // checkpoint files and tensors
  file_not_found: 400,
  file_unreadable: 400,
  format_not_supported: 400,
  safetensors_invalid: 400,
  tensor_conflict: 400,
  tensor_missing: 400,
  checkpoint_invalid: 409,
  checkpoint_empty: 409,
  file_changed: 500,
  // memory
  host_memory_exhausted: 507,
  device_memory_exhausted: 507,
  tensor_too_large: 507,
  // the engine
  engine_unreachable: 502,
  engine_failed: 502,
  engine_busy: 504,
  engine_timeout: 504,
  engine_disconnected: 502,
  engine_device_missing: 502,
  engine_protocol: 502,
  engine_restart_needed: 502,
  // a client only: nothing answers at the daemon's address
  daemon_unreachable: 502,
  // the update and the machine
  aborted: 500,
  update_timeout: 504,
  plan_mismatch: 500,
  rank_failed: 500,
  device_error: 500,
  device_lost: 500,
  native_missing: 500,
  // a daemon or engine that starts: its address is taken, or not this host's
  cannot_listen: 500,
  // daemons that work together
  node_lost: 503,
  leader_lost: 503,
  shutting_down: 503,
  internal: 500,
} as const satisfies Record<string, number>

export type ErrorCode = keyof typeof ERROR_STATUS

/** Phase of an update in which an error arose, in the order in which they run. */
export type Phase =
  | 'register'
  | 'gather'
  | 'plan'
  | 'pause'
  | 'open'
  | 'transfer'
  | 'release'
  | 'post'
  | 'resume'

/**
 * An operating error as it crosses every boundary: worker messages, HTTP answers, reports,
 * `--json`.
 */
export interface Failure {
  code: ErrorCode
  message: string
  /** Global rank. */
  rank?: number
  phase?: Phase
  /** Name of the tensor concerned. */
  tensor?: string
  /** Id of the update that stands in the way (`update_running`). */
  update_id?: string
}

/** The one error class of the program: a {@link Failure} that can be thrown. */
export class CkptError extends Error {
  readonly failure: Failure

  constructor(code: ErrorCode, message: string, details: Omit<Failure, 'code' | 'message'> = {}) {
    super(message)
    this.name = 'CkptError'
    this.failure = { code, message, ...details }
  }

  get code(): ErrorCode {
    return this.failure.code
  }

  get status(): number {
    return ERROR_STATUS[this.failure.code]
  }

  static from(failure: Failure): CkptError {
    const { code, message, ...details } = failure
    return new CkptError(code, message, details)
  }

  /** Wraps what is not a CkptError as `internal`, keeping its message. */
  static wrap(error: unknown): CkptError {
    if (error instanceof CkptError) return error
    return new CkptError('internal', error instanceof Error ? error.message : String(error))
  }
}
