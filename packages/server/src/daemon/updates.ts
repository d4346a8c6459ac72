import type {
  Failure,
  StatusAnswer,
  UpdateEvent,
  UpdateReport,
  UpdateRequest,
  UpdateState,
} from '@ckpt/core'
import type { Registry } from './registry.ts'
import type { DaemonOptions } from './types.ts'

/** An update that was accepted. */
export interface UpdateHandle {
  readonly id: string
  /** Rejects with a CkptError; the state of the update then carries the engines' reports. */
  readonly done: Promise<UpdateReport>
}

export type UpdatesStatus = Pick<
  StatusAnswer,
  'devices' | 'ranks' | 'engines' | 'running_update' | 'queued'
> & { readonly quarantined_bytes: number }

/** The updates of one daemon: one at a time, the others wait their turn. */
export interface Updates {
  /** Ends what a dead predecessor left: engines that wait, shared memory, sockets; restores the torn marks. */
  recover(): Promise<void>
  /** Throws at once what is wrong with the request (400, 403, 404, 409, 429, 503). */
  start(name: string, request: UpdateRequest): UpdateHandle
  /** Throws `update_not_found`. The last 100 ended updates are remembered. */
  state(id: string): UpdateState
  /** Begins with the state of now and ends after `done` or `failed`. Throws `update_not_found`. */
  events(id: string): AsyncIterable<UpdateEvent>
  /** Ends an update; without effect when it has ended. Throws `update_not_found`. */
  abort(id: string, reason?: string): UpdateState
  status(): UpdatesStatus
  /** Settles when a device is lost: the daemon must then close and exit with status 4. */
  readonly deviceLost: Promise<Failure>
  /** Aborts what runs, releases the engines, ends the rank workers. */
  close(reason: string): Promise<void>
}

export declare function createUpdates(options: DaemonOptions, registry: Registry): Promise<Updates>
