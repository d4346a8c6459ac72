import {
  type Library,
  NativeError,
  STATUS_ERR_ABORTED,
  STATUS_ERR_HANDLE,
  STATUS_ERR_TIMEOUT,
} from '@ckpt/cuda'
import { Broadcasts } from './broadcasts.ts'
import { SimulatedDevices } from './devices.ts'
import type { HardwareQueues } from './hardware-queues.ts'

const ID_BYTES = 128

interface Joined {
  readonly stream: number
  readonly memory: number
}

interface Member {
  readonly id: string
  readonly broadcasts: Broadcasts
  readonly member: number
}

/** What the daemon's code wants of the native library: its devices, and what several of them do together. */
export class SimulatedLibrary extends SimulatedDevices {
  /** How the next joining ends where it was waited for in vain. */
  joinFails: 'aborted' | 'late' | null = null
  readonly #groups = new Map<number, { readonly broadcasts: Broadcasts; members: Joined[] }>()
  readonly #communicators = new Map<number, Member>()

  /** As the daemon's code knows it: what it does not call in a simulation is not there. */
  get asLibrary(): Library {
    return this as unknown as Library
  }

  /** Groups that were not given back. */
  get groups(): number {
    return this.#groups.size
  }

  #broadcasts(members: number): Broadcasts {
    return new Broadcasts(this.shared, members, 'error')
  }

  groupCreate(members: number): number {
    return this.add(this.#groups, { broadcasts: this.#broadcasts(members), members: [] })
  }

  groupJoin(group: number, member: number, stream: number, memory: number): void {
    const { members } = this.of(this.#groups, group, 'ckpt_group_join')
    members[member] = { stream, memory }
  }

  groupBroadcast(group: number, member: number, root: number, offset: number, bytes: number): void {
    const { broadcasts, members } = this.of(this.#groups, group, 'ckpt_group_broadcast')
    const joined = members[member]
    if (joined === undefined) return this.witness.violated('a broadcast of who has not joined')
    if (broadcasts.aborted(member)) {
      const words = 'the group was aborted'
      throw new NativeError('ckpt_group_broadcast', STATUS_ERR_ABORTED, words)
    }
    this.#broadcast(broadcasts, member, joined, root, offset, bytes)
  }

  #broadcast(
    broadcasts: Broadcasts,
    member: number,
    { stream, memory }: Joined,
    root: number,
    offset: number,
    bytes: number,
    queues: HardwareQueues | null = null,
  ): void {
    if (!this.inRun) this.witness.violated('a broadcast of a run that has closed')
    const { ring } = this.of(this.memories, memory, 'broadcast')
    const queue = this.of(this.streams, stream, 'broadcast')
    broadcasts.enqueue(
      member,
      queue,
      { handle: memory, ring, life: this.life, queues },
      root,
      offset,
      bytes,
    )
  }

  groupAbort(group: number): void {
    this.of(this.#groups, group, 'ckpt_group_abort').broadcasts.abortAll()
  }

  groupDestroy(group: number): void {
    this.of(this.#groups, group, 'ckpt_group_destroy').broadcasts.abortAll()
    this.#groups.delete(group)
  }

  communicatorId(): Uint8Array {
    const id = new Uint8Array(ID_BYTES)
    new DataView(id.buffer).setUint32(0, this.shared.handle())
    return id
  }

  /** All have come already, unless they will not: see {@link Meetings}. */
  communicatorCreate(
    place: { readonly id: Uint8Array; readonly members: number; readonly member: number },
    signal: number,
  ): number {
    const id = place.id.toHex()
    const broadcasts = this.shared.meetings.complete(id)
    const fails = this.joinFails
    this.joinFails = null
    if (fails !== null || broadcasts === null || this.aborts(signal)) {
      const status = fails === 'late' ? STATUS_ERR_TIMEOUT : STATUS_ERR_ABORTED
      throw new NativeError('ckpt_communicator_create', status, 'not every member has come')
    }
    return this.add(this.#communicators, { id, broadcasts, member: place.member })
  }

  /** Whether a member has joined, and is to meet nobody. */
  hasJoined(id: string, member: number): boolean {
    return [...this.#communicators.values()].some((one) => one.id === id && one.member === member)
  }

  communicatorBroadcast(
    communicator: number,
    stream: number,
    memory: number,
    root: number,
    offset: number,
    bytes: number,
  ): void {
    const of = this.of(this.#communicators, communicator, 'ckpt_communicator_broadcast')
    const device = this.memories.get(memory)?.device ?? 0
    const queues = this.queues.get(device) ?? null
    this.#broadcast(of.broadcasts, of.member, { stream, memory }, root, offset, bytes, queues)
  }

  communicatorAbort(communicator: number): void {
    const of = this.of(this.#communicators, communicator, 'ckpt_communicator_abort')
    of.broadcasts.abort(of.member)
  }

  communicatorDestroy(communicator: number): void {
    const one = this.#communicators.get(communicator)
    // whoever outlives a rank does it again
    if (one === undefined) {
      throw new NativeError('ckpt_communicator_destroy', STATUS_ERR_HANDLE, 'it is gone')
    }
    one.broadcasts.abort(one.member)
    this.#communicators.delete(communicator)
  }
}
