import { CkptError, type ErrorCode, type Failure } from '@ckpt/core'

/** Exit codes of every command. */
export const EXIT = { done: 0, failed: 1, usage: 2, unreachable: 3, deviceLost: 4 } as const

/**
 * Ends a command with a {@link Failure}. `details` goes beside `error` into the `--json` document, for example the
 * state of the update that failed.
 */
export class CommandError extends Error {
  constructor(
    readonly failure: Failure,
    readonly details: Record<string, unknown> = {},
  ) {
    super(failure.message)
    this.name = 'CommandError'
  }
}

/** Wrong usage that the option parser cannot see, for example two options that exclude each other. */
export function usageError(message: string): CommandError {
  return new CommandError({ code: 'bad_request', message })
}

const UNREACHABLE: readonly ErrorCode[] = [
  'daemon_unreachable',
  'engine_unreachable',
  'leader_lost',
]

export function exitCodeOf(code: ErrorCode): number {
  if (code === 'bad_request') return EXIT.usage
  if (code === 'device_lost') return EXIT.deviceLost
  return UNREACHABLE.includes(code) ? EXIT.unreachable : EXIT.failed
}

const NEXT_STEP: Partial<Record<ErrorCode, string>> = {
  bad_request: 'see `ckpt COMMAND --help`',
  daemon_unreachable: 'start one with `ckpt serve`, or name it with --daemon URL|PATH',
  unauthorized: 'name the file that holds the token with --token-file',
  path_not_allowed: 'start the daemon with --allow-dir DIR for each directory it may read',
  engine_not_allowed: 'start the daemon with --allow-engine URL for each engine it may contact',
  checkpoint_not_found: '`ckpt ls` shows what is held',
  checkpoint_exists: '`ckpt update` replaces it; `ckpt rm NAME` drops it',
  checkpoint_busy: '`ckpt status` shows the running update; try again when it has ended',
  update_not_found: '`ckpt status` shows the running update',
  update_running: '`ckpt abort ID` ends it; an update without --if-busy fail waits for it',
  host_memory_exhausted:
    'raise --host-memory-gib of the daemon, or drop a checkpoint with `ckpt rm`',
  device_memory_exhausted: 'lower --ring-gib, or give the engine less of the device',
  tensor_too_large: 'give the engine less of the device: the ring must hold the largest tensor',
  engine_unreachable: 'is the engine running, and is --endpoint (or --uds) right?',
  engine_busy: 'raise --pause-timeout, or end its requests with --pause abort',
  engine_restart_needed: 'restart the engine; its workers no longer answer in step',
  engine_device_missing: 'do --inference-parallel-size and the devices of daemon and engine agree?',
  native_missing: 'build it with `npm run setup`; `ckpt doctor` says what is missing',
  device_lost: 'start the daemon again (`ckpt serve --supervise` does it by itself)',
}

/** The failure in any thrown value, and what belongs beside it in the `--json` document. */
export function failureOf(error: unknown): {
  failure: Failure
  details: Record<string, unknown>
} {
  if (error instanceof CommandError) return error
  return { failure: CkptError.wrap(error).failure, details: {} }
}

/** `ckpt: message` and a next step, for people. */
export function failureText(failure: Failure): string {
  const where = [
    failure.rank === undefined ? '' : `rank ${failure.rank}`,
    failure.phase === undefined ? '' : `phase ${failure.phase}`,
  ].filter((part) => part !== '')
  const suffix = where.length === 0 ? '' : ` (${where.join(', ')})`
  const next = NEXT_STEP[failure.code]
  return `ckpt: ${failure.message}${suffix}\n${next === undefined ? '' : `      ${next}\n`}`
}
