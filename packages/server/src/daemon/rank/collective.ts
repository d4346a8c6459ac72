import {
  type Handle,
  NativeError,
  STATUS_ERR_ABORTED,
  STATUS_ERR_HANDLE,
  STATUS_ERR_STATE,
  STATUS_ERR_TIMEOUT,
} from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { inject } from './injected.ts'
import type { Meeting } from './kept-communicator.ts'
import type { OpenOptions, Peer } from './messages.ts'
import type { Ring } from './ring.ts'
import type { RunHost } from './run-host.ts'

/** Another rank has ended it, or it is destroyed. */
const HAS_ENDED: readonly number[] = [STATUS_ERR_ABORTED, STATUS_ERR_STATE, STATUS_ERR_HANDLE]

/** How the ranks of an update bring each other their buckets. */
export interface Collective {
  /** This rank takes part from now on. Blocks until the others do too, where they have to meet. */
  join(): void
  /**
   * Enqueues on the ring's collective stream: these bytes of the root's ring come to the same place of this one. Every rank calls
   * it in the same order.
   *
   * @param root position in the update's ranks
   */
  broadcast(root: number, offset: number, bytes: number): void
  /** Who is told when this rank's bytes are in its ring; null: what waits for bytes waits where it disturbs nobody. */
  readonly told: Told | null
  /** A broadcast waits on the device, and a call costs something beside its bytes: they are joined, and no ring is freed meanwhile. */
  readonly isCommunicator: boolean
  /** Ends whatever waits for another rank. False: not in time, its streams may still run. Blocks. */
  abort(): boolean
}

/** Who knows which bytes are there. */
export interface Told {
  /** This rank's position. */
  readonly member: number
  /** By position in the update's ranks; null: of another process. */
  readonly peers: readonly (Peer | null)[]
}

/** Null: the rank is alone. */
export function makeCollective(
  host: RunHost,
  { collective, ranks, member, openMs, deadlineMs }: OpenOptions,
  ring: Ring,
): Collective | null {
  if (collective === null) return null
  if (collective.type === 'copies') return new Copies(host, collective.group, member, ring)
  const untilMs = Math.min(deadlineMs, clockMs() + openMs)
  const meeting = { ...collective, member, members: ranks.length, deadlineMs: untilMs }
  return new Communicator(host, meeting, collective.peers, ring)
}

/** Copies between the rings of one process. */
class Copies implements Collective {
  readonly told = null
  readonly isCommunicator = false
  readonly #host: RunHost
  readonly #group: Handle
  readonly #member: number
  readonly #ring: Ring

  constructor(host: RunHost, group: Handle, member: number, ring: Ring) {
    this.#host = host
    this.#group = group
    this.#member = member
    this.#ring = ring
  }

  join(): void {
    const { collectiveStream, memory } = this.#ring
    this.#host.library.groupJoin(this.#group, this.#member, collectiveStream, memory)
  }

  broadcast(root: number, offset: number, bytes: number): void {
    this.#host.library.groupBroadcast(this.#group, this.#member, root, offset, bytes)
  }

  abort(): boolean {
    return endsInTime(() => this.#host.library.groupAbort(this.#group))
  }
}

/** NCCL, or UCX on the host library, with the communicator that the rank keeps. */
class Communicator implements Collective {
  readonly told: Told
  readonly isCommunicator = true
  readonly #host: RunHost
  readonly #meeting: Meeting
  readonly #ring: Ring
  #handle: Handle = 0

  constructor(host: RunHost, meeting: Meeting, peers: Told['peers'], ring: Ring) {
    this.told = { member: meeting.member, peers }
    this.#host = host
    this.#meeting = meeting
    this.#ring = ring
  }

  join(): void {
    const { communicator, library, signal } = this.#host
    inject(library, 'meet')
    this.#handle = communicator.take(this.#meeting, signal)
  }

  broadcast(root: number, offset: number, bytes: number): void {
    const { collectiveStream, memory } = this.#ring
    const { library } = this.#host
    library.communicatorBroadcast(this.#handle, collectiveStream, memory, root, offset, bytes)
  }

  /** It is of no use any more. */
  abort(): boolean {
    return endsInTime(() => this.#host.communicator.drop())
  }
}

function endsInTime(end: () => void): boolean {
  try {
    end()
  } catch (error) {
    if (!(error instanceof NativeError)) throw error
    if (error.nativeStatus === STATUS_ERR_TIMEOUT) return false
    if (!HAS_ENDED.includes(error.nativeStatus)) throw error
  }
  return true
}
