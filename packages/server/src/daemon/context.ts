import type { Server } from 'bun'
import type { GuestPulls } from './cluster/guest-pulls.ts'
import type { DaemonCluster } from './cluster/serving.ts'
import type { BufferHolds } from './http/buffer-holds.ts'
import type { RankCalls } from './http/rank-sockets.ts'
import type { Registry } from './registry/registry.ts'
import type { GatherAnswer, UpdateRequest } from '@ckpt/core'
import type { UpdateHandle, Updates } from './updates/updates.ts'

/** SHA-256 of the token: of equal length whatever a client sends, so the comparison tells nothing about the length. */
export type TokenDigest = Buffer

/** Where a request came in. */
export interface Listener {
  readonly transport: 'unix' | 'tcp'
  /** What clients of this listener must send; null: who can open the socket may do everything. */
  readonly token: TokenDigest | null
  /** The rank whose own socket this is, see `rank-sockets.ts`. */
  readonly rank: number | null
}

export interface DaemonEnv {
  Bindings: {
    readonly listener: Listener
    /** null where no server is behind the app, as with `app.request`. */
    readonly server: Server<undefined> | null
  }
  Variables: {
    /** What fails from here on has its line in the log already. */
    logged?: true
  }
}

/** What the routes serve. */
export interface Daemon {
  readonly version: string
  readonly registry: Registry
  readonly updates: Updates
  /** `updates.start` with a line in the log when it starts and when it ends. */
  start(name: string, request: UpdateRequest): UpdateHandle
  /** What an update would send, of all daemons. @throws CkptError as `Registry.gather` */
  gather(name: string): Promise<GatherAnswer>
  /** Joins the calls that come over the ranks' own sockets. */
  readonly rankCalls: RankCalls
  /** null: the daemon works alone. */
  readonly cluster: DaemonCluster | null
  /** Copies of what the daemons of other clusters hold. */
  readonly pulls: GuestPulls
  /** Connections of trainers that write into buffers. */
  readonly bufferHolds: BufferHolds
  /** null: nobody said, so any file may be registered over Unix sockets and none over TCP. */
  readonly allowedDirs: readonly string[] | null
  readonly closing: boolean
  readonly heartbeatMs: number
}
