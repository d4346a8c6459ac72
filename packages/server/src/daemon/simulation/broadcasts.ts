import { NativeError, STATUS_ERR_ABORTED } from '@ckpt/cuda'
import type { HardwareQueues } from './hardware-queues.ts'
import type { TracedMemory } from './traced-memory.ts'
import type { Stream } from './streams.ts'
import type { Life, SimulatedTime, Timer } from './time.ts'
import type { Witness } from './violation.ts'

/** Where a member's bytes are. */
export interface Target {
  readonly handle: number
  readonly ring: TracedMemory
  /** Its process. */
  readonly life: Life
  /** What other ranks of its process wait for on its device; absent: they are not in its way. */
  readonly queues?: HardwareQueues | null
}

/** A member whose stream has come to a broadcast. */
interface Present {
  readonly target: Target
  readonly done: (error: NativeError | null) => void
  timer: Timer | null
  ended: boolean
  /** It is on the device no more. */
  readonly leave: () => void
}

interface Broadcast {
  readonly root: number
  readonly offset: number
  readonly bytes: number
  readonly present: (Present | undefined)[]
}

export interface BroadcastModel {
  readonly time: SimulatedTime
  readonly witness: Witness
  /** How long one takes. */
  durationMs(bytes: number): number
}

/** What is ended by an abort completes with an error (a group) or as if it had gone well (a communicator). */
export type AbortedAs = 'error' | 'complete'

/**
 * Broadcasts among members that each call them in the same order. One begins for a member when its stream and that of the root have
 * come to it.
 */
export class Broadcasts {
  readonly members: number
  readonly #model: BroadcastModel
  readonly #abortedAs: AbortedAs
  readonly #all: Broadcast[] = []
  readonly #calls: number[]
  /** Members that take part no more. */
  readonly #gone = new Set<number>()

  constructor(model: BroadcastModel, members: number, abortedAs: AbortedAs) {
    this.#model = model
    this.members = members
    this.#abortedAs = abortedAs
    this.#calls = Array.from({ length: members }, () => 0)
  }

  /** Enqueues the next one of a member. */
  enqueue(
    member: number,
    stream: Stream,
    target: Target,
    root: number,
    offset: number,
    bytes: number,
  ): void {
    const index = this.#calls[member] as number
    this.#calls[member] = index + 1
    const known = this.#all[index]
    const one = known ?? { root, offset, bytes, present: [] }
    this.#all[index] = one
    if (one.root !== root || one.offset !== offset || one.bytes !== bytes) {
      this.#model.witness.violated(`member ${member} calls broadcast ${index} otherwise`)
    }
    stream.push({
      isWork: true,
      begin: (done) => this.#come(one, member, target, done),
      hurry: () => null,
      uses: (other) => other === target.handle,
    })
  }

  #come(
    one: Broadcast,
    member: number,
    target: Target,
    done: (error: NativeError | null) => void,
  ): void {
    if (this.#gone.has(member)) return done(this.#abortError)
    const leave = target.queues?.launch(target.handle) ?? (() => {})
    one.present[member] = { target, done, timer: null, ended: false, leave }
    this.#advance(one)
  }

  #advance(one: Broadcast): void {
    const root = one.present[one.root]
    if (root === undefined || root.ended || !root.target.life.alive) return
    for (let member = 0; member < this.members; member++) {
      const present = one.present[member]
      if (member === one.root || present === undefined) continue
      if (present.ended || present.timer !== null) continue
      const { ring, life } = present.target
      ring.spoil(one.offset, one.bytes)
      const ms = this.#model.durationMs(one.bytes)
      present.timer = this.#model.time.after(ms, () => this.#taken(one, root, present), life)
    }
    for (let member = 0; member < this.members; member++) {
      if (member === one.root || this.#gone.has(member)) continue
      if (!(one.present[member]?.ended ?? false)) return
    }
    this.#end(root, null)
  }

  #taken(one: Broadcast, root: Present, present: Present): void {
    if (present.ended) return
    if (!root.target.life.alive) return
    present.target.ring.copy(root.target.ring, one.offset, one.bytes)
    this.#end(present, null)
    this.#advance(one)
  }

  #end(present: Present, error: NativeError | null): void {
    if (present.ended) return
    present.ended = true
    if (present.timer !== null) present.timer.cancelled = true
    present.done(error)
    present.leave()
  }

  get #abortError(): NativeError | null {
    if (this.#abortedAs === 'complete') return null
    return new NativeError('ckpt_group_broadcast', STATUS_ERR_ABORTED, 'the group was aborted')
  }

  /** Ends what a member waits for, now and later. */
  abort(member: number): void {
    if (this.#gone.has(member)) return
    this.#gone.add(member)
    for (const one of this.#all) {
      const present = one.present[member]
      if (present !== undefined) this.#end(present, this.#abortError)
    }
    for (const one of this.#all) this.#advance(one)
  }

  abortAll(): void {
    for (let member = 0; member < this.members; member++) this.abort(member)
  }

  aborted(member: number): boolean {
    return this.#gone.has(member)
  }
}
