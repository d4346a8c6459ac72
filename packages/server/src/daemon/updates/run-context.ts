import type { Library } from '@ckpt/cuda'
import type { EngineHost } from '../../engines/host.ts'
import type { RankHandle, Ranks } from '../rank/handle.ts'
import type { DaemonOptions, VersionLease } from '../types.ts'
import type { Communicators } from './communicators.ts'
import type { DirectCosts } from './direct-costs.ts'
import type { EngineBook } from './engines.ts'
import type { Journal } from './journal.ts'
import type { Planner } from './plan.ts'
import type { RateBook } from './rates.ts'
import type { EngineSockets } from './sockets.ts'
import type { UpdateSpec } from './spec.ts'

/** What the updates of one daemon share. */
export interface RunContext {
  readonly options: DaemonOptions
  readonly library: Library
  /** What an update sends: the newest version of a checkpoint. @throws CkptError as `Registry.lease` */
  lease(name: string, update: Pick<UpdateSpec, 'id' | 'ranks'>): Promise<VersionLease>
  readonly pool: Ranks
  readonly book: EngineBook
  readonly journal: Journal
  readonly planner: Planner
  readonly rates: RateBook
  readonly directCosts: DirectCosts
  readonly sockets: Pick<EngineSockets, 'address'>
  /** What these ranks meet by; null: they copy from each other's rings. */
  communicatorsOf(links: readonly RankHandle[]): Communicators | null
  /** Where a daemon's engines are called from. */
  engineHost(node: number): EngineHost
  /** Ends the requests to engines when the daemon closes. */
  readonly closing: AbortSignal
}
