import type { Handle, Library } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'

/** The ranks of an update, and this one's place among them. */
export interface Meeting {
  /** Hex; of these ranks, until one of their updates fails. */
  readonly id: string
  readonly members: number
  readonly member: number
  /** Members that have this one's device. */
  readonly sharers: number
  /** When all must have met, of {@link clockMs}. */
  readonly deadlineMs: number
}

/** A rank's communicator. To make one takes half a second, so the same ranks go on with it. */
export class KeptCommunicator {
  readonly #library: Library
  readonly #device: number
  readonly #changed: (handle: Handle) => void
  #kept: { readonly id: string; readonly handle: Handle } | null = null

  /** @param changed is told which one there is, 0: none; whoever outlives the rank can end it */
  constructor(library: Library, device: number, changed: (handle: Handle) => void = () => {}) {
    this.#library = library
    this.#device = device
    this.#changed = changed
  }

  /**
   * The one of this id: what is kept, or a new one as soon as every member has come. Blocks.
   *
   * @throws CkptError `aborted` by the signal, `update_timeout`, `not_supported` where there is no NCCL, or too old a one
   */
  take({ id, members, member, sharers, deadlineMs }: Meeting, signal: Handle): Handle {
    if (this.#kept?.id === id) return this.#kept.handle
    this.drop()
    const place = {
      id: Uint8Array.fromHex(id),
      device: this.#device,
      members,
      member,
      sharers,
    }
    const limitMs = Math.max(1, Math.ceil(deadlineMs - clockMs()))
    const handle = this.#library.communicatorCreate(place, signal, limitMs)
    this.#kept = { id, handle }
    this.#changed(handle)
    return handle
  }

  /** Ends what it waits for, and gives its memory back. NCCL takes half a second. */
  drop(): void {
    if (this.#kept === null) return
    const { handle } = this.#kept
    this.#kept = null
    this.#changed(0)
    this.#library.communicatorDestroy(handle)
  }
}
