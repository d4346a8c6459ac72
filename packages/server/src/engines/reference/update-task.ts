import type { Dialect } from '@ckpt/core'
import { CkptError } from '@ckpt/core/api/errors'
import type { DaemonSocket } from './daemon-socket.ts'
import { type Fault, strikes } from './faults.ts'
import type { UpdatePhase } from './messages.ts'

/** What a rank is to do in one update. */
export interface UpdateTask {
  readonly address: string
  readonly dialect: Dialect
  readonly device: number
  readonly rank: number
  readonly faults: readonly Fault[]
  /** Whether the parameters are of two versions before it. */
  readonly torn: boolean
}

export interface UpdateHooks {
  /** The parameters are being changed, or are whole again. */
  torn(torn: boolean): void
  /** A fault holds it. */
  holding(): void
  /** The process must exit now. */
  exit(): void
}

/** How far an update has come, also one that fails. */
export interface UpdateProgress {
  phase: UpdatePhase
  /** That were loaded out of the ring. */
  tensors: number
  /** The daemon has copied all into the parameters itself. */
  placed: boolean
}

/** The faults `hold@K` and `hold@post`. */
export function hold(socket: DaemonSocket, hooks: UpdateHooks, what: string): void {
  hooks.holding()
  socket.hold(what)
}

/** The faults `hang@K`, `hold@K`, `exit@K` and `close@K`. */
export function misbehave(
  socket: DaemonSocket,
  hooks: UpdateHooks,
  faults: readonly Fault[],
  k: number,
  what: string,
): void {
  if (strikes(faults, 'hang', k)) socket.hang(what)
  if (strikes(faults, 'hold', k)) hold(socket, hooks, what)
  if (strikes(faults, 'exit', k)) {
    hooks.exit()
    socket.hang(what)
  }
  if (strikes(faults, 'close', k)) {
    throw new CkptError('engine_failed', `injected: the socket closes at ${what}`)
  }
}
