import type { Library } from '@ckpt/cuda'
import type { RankPool } from '../rank/pool.ts'
import type { Registry } from '../registry/registry.ts'
import type { DaemonOptions } from '../types.ts'
import type { Communicators } from './communicators.ts'
import type { EngineBook } from './engines.ts'
import type { Journal } from './journal.ts'
import type { Planner } from './plan.ts'
import type { RateBook } from './rates.ts'
import type { EngineSockets } from './sockets.ts'

/** What the updates of one daemon share. */
export interface RunContext {
  readonly options: DaemonOptions
  readonly library: Library
  readonly registry: Registry
  readonly pool: RankPool
  readonly book: EngineBook
  readonly journal: Journal
  readonly planner: Planner
  readonly rates: RateBook
  readonly sockets: EngineSockets
  /** Null: ranks copy from each other's rings. */
  readonly communicators: Communicators | null
  /** Ends the requests to engines when the daemon closes. */
  readonly closing: AbortSignal
}
