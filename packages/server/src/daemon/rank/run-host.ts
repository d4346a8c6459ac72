import type { Library, ZmqContext } from '@ckpt/cuda'
import type { RankInfo } from '../types.ts'
import type { KeptCommunicator } from './kept-communicator.ts'
import type { RankEvent, RankMessage } from './messages.ts'
import type { KeptRun } from './quarantine.ts'
import type { RemoteSources } from './remote-sources.ts'

/** What a run has of the thread that it runs on. */
export interface RunHost {
  readonly library: Library
  readonly context: ZmqContext
  readonly signal: number
  readonly rank: RankInfo
  readonly communicator: KeptCommunicator
  readonly remoteSources: RemoteSources
  /** There are processors enough for a rank not to sleep while an update moves. */
  readonly spins: boolean
  report(run: number, event: RankEvent): void
  /** The messages that have arrived; those that are not for a run are kept for later. */
  takeMessages(): RankMessage[]
  /** Keeps a ring that may still be read or written, and the socket of a worker that has not left; frees them later. */
  quarantine(kept: KeptRun): void
  /** This engine's worker is in this run, so it is in no earlier one. */
  openedAnew(engine: string): void
  /** Looks after what earlier runs have left; their rings stay with `frees` false. Does not wait. */
  tend(frees?: boolean): void
  /** So often at least, where it matters. */
  readonly tendMs?: number
}
