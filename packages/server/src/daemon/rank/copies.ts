import type { Handle, Library } from '@ckpt/cuda'
import { BUCKET_ALIGNMENT, type SourceSpace } from '@ckpt/core'
import { BroadcastOrder } from './broadcast-order.ts'
import type { Collective } from './collective.ts'
import { BusyIntervals } from './intervals.ts'
import { PROGRESS_COPIED } from './messages.ts'
import type { HeldPlan } from './plans.ts'
import type { Ring } from './ring.ts'
import { bufferAt } from './source-buffer.ts'

export interface CopyTarget {
  readonly library: Library
  readonly signal: Handle
  readonly ring: Ring
  readonly held: HeldPlan
  /** Per owner: native handles of its source buffers. */
  readonly buffers: readonly Uint32Array[]
  /** Per owner: what another daemon's are read by; null: this one has them. */
  readonly remotes: readonly (Uint32Array | null)[]
  /** Null: the rank is alone. */
  readonly collective: Collective | null
  readonly ranks: readonly number[]
}

/** Copies are joined up to this size: a call for each would keep the engine's next list waiting. */
const JOINED_BYTES_MAX = 256 * 2 ** 20

/** Of a broadcast that brings several segments: while its first ones are copied nothing of it is on its way. */
const BROADCAST_BYTES_MAX = 64 * 2 ** 20

/**
 * Buckets whose broadcasts are launched and not complete. More would fill the stream's queue, some thousand entries, and a call that
 * waits for room there keeps the driver from the ranks of the same process that it waits for.
 */
const LAUNCHED_BUCKETS_MAX = 32

/** Neighbours in source and ring that are copied with one call. */
interface JoinedCopy {
  readonly buffer: Handle
  readonly bufferOffset: number
  readonly ringOffset: number
  /** The handle is of what another daemon shares. */
  readonly isRemote: boolean
  bytes: number
}

/**
 * Neighbours of one bucket, with what little lies between them: every rank joins the same. A broadcast by NCCL takes 0.1 ms beside
 * its bytes.
 */
interface JoinedBroadcast {
  readonly root: number
  readonly offset: number
  end: number
  segments: number
}

interface PendingBucket {
  readonly event: Handle
  readonly bucket: number
  /** Segments of it that this rank copies. */
  readonly ownSegments: number
}

/** Enqueues the copies and broadcasts of one rank and tells which buckets are complete. Nothing here waits. */
export class RingCopies {
  readonly h2d = new BusyIntervals()
  /** As the rank that copies a bucket sees it: from the end of its copy until every rank has it. */
  readonly broadcast = new BusyIntervals()
  readonly #target: CopyTarget
  /** Events of this rank's own copies that a broadcast waits for. */
  readonly #copies: Handle[] = []
  readonly #buckets: PendingBucket[] = []
  #ownSegments = 0
  #joined: JoinedCopy | null = null
  #broadcast: JoinedBroadcast | null = null
  /** Own segments that are in the ring. */
  #copied = 0
  readonly #order: BroadcastOrder | null
  /** Of every rank that takes part, by its position; null: of another process. */
  readonly #progress: readonly (Int32Array | null)[]

  constructor(target: CopyTarget) {
    this.#target = target
    const told = target.collective?.told ?? null
    this.#progress = told?.peers.map((peer) => peer && new Int32Array(peer.progress)) ?? []
    const hasRoom = () => this.#buckets.length < LAUNCHED_BUCKETS_MAX
    this.#order = told && new BroadcastOrder((root) => this.#copiedBy(root), hasRoom)
  }

  /** Segments that a root has in its ring. What waits for another process disturbs no copy that it waits for. */
  #copiedBy(root: number): number {
    const progress = this.#progress[root] ?? null
    return progress === null ? Number.POSITIVE_INFINITY : Atomics.load(progress, PROGRESS_COPIED)
  }

  /** The segment's host memory into this rank's ring, at the latest with the next {@link flush}. */
  copy(segment: number, nowMs: number): void {
    const { library, ring, held, buffers, remotes, collective } = this.#target
    const { plan, input } = held
    const owner = plan.bucketOwner[held.bucketOf(segment)] as number
    const source = input.sources[owner] as SourceSpace
    const offset = plan.segmentSource[segment] as number
    const bytes = plan.segmentSize[segment] as number
    const index = bufferAt(source, offset, bytes)
    const remote = remotes[owner] ?? null
    const buffer = (remote ?? buffers[owner])?.[index]
    if (buffer === undefined) throw new Error(`owner ${owner} has no buffer ${index}`)
    const start = source.starts[index] as number
    const ringOffset = plan.segmentRing[segment] as number
    const bufferOffset = offset - start
    this.#join({ buffer, bufferOffset, ringOffset, bytes, isRemote: remote !== null })
    this.h2d.begin(nowMs)
    this.#ownSegments++
    if (collective === null) return
    this.flush()
    const event = this.#record(ring.copyStream)
    if (this.#order === null) library.streamWaitEvent(ring.collectiveStream, event)
    this.#copies.push(event)
  }

  #join(copy: JoinedCopy): void {
    const last = this.#joined
    const neighbours =
      last !== null &&
      last.buffer === copy.buffer &&
      last.isRemote === copy.isRemote &&
      last.bufferOffset + last.bytes === copy.bufferOffset &&
      last.ringOffset + last.bytes === copy.ringOffset
    if (neighbours && last.bytes + copy.bytes <= JOINED_BYTES_MAX) {
      last.bytes += copy.bytes
      return
    }
    this.flush()
    this.#joined = copy
  }

  /** Enqueues what was joined. */
  flush(): void {
    const copy = this.#joined
    if (copy === null) return
    this.#joined = null
    const { library, ring } = this.#target
    const { buffer, bufferOffset, ringOffset, isRemote, bytes } = copy
    const { copyStream, memory } = ring
    if (isRemote)
      library.p2p.copyRemote(copyStream, memory, ringOffset, buffer, bufferOffset, bytes)
    else library.copyH2d(copyStream, memory, ringOffset, buffer, bufferOffset, bytes)
  }

  /** The segment's bytes of `root`'s ring into the ring of every rank, at the latest when its bucket is recorded. */
  broadcastSegment(segment: number, root: number): void {
    const { segmentRing, segmentSize } = this.#target.held.plan
    const offset = segmentRing[segment] as number
    const end = offset + (segmentSize[segment] as number)
    const last = this.#broadcast
    const gap = last === null ? -1 : offset - last.end
    const neighbours = last !== null && last.root === root && gap >= 0 && gap < BUCKET_ALIGNMENT
    const joins = this.#target.collective?.isCommunicator ?? false
    // a copy from ring to ring costs nothing beside its bytes
    if (joins && neighbours && end - last.offset <= BROADCAST_BYTES_MAX) {
      last.end = end
      last.segments++
      return
    }
    this.#flushBroadcast()
    this.#broadcast = { root, offset, end, segments: 1 }
    if (!joins) this.#flushBroadcast()
  }

  #flushBroadcast(): void {
    const last = this.#broadcast
    if (last === null) return
    this.#broadcast = null
    const { collective, ranks } = this.#target
    if (collective === null) throw new Error('there is nobody to broadcast to')
    const root = ranks.indexOf(last.root)
    const run = () => collective.broadcast(root, last.offset, last.end - last.offset)
    if (this.#order === null) run()
    else this.#order.broadcast(root, last.segments, run)
  }

  /** Marks the end of the bucket's work. */
  record(bucket: number): void {
    this.flush()
    this.#flushBroadcast()
    const ownSegments = this.#ownSegments
    this.#ownSegments = 0
    const { ring, collective } = this.#target
    const run = () => {
      const event = this.#record(collective === null ? ring.copyStream : ring.collectiveStream)
      this.#buckets.push({ event, bucket, ownSegments })
    }
    if (this.#order === null) run()
    else this.#order.behind(run)
  }

  #record(stream: Handle): Handle {
    const { library, ring, signal } = this.#target
    const event = ring.event()
    library.eventRecord(event, stream)
    library.eventNotify(event, signal)
    return event
  }

  /**
   * The buckets that have become complete, in order.
   *
   * @throws NativeError what failed in a copy or a broadcast
   */
  takeComplete(nowMs: number): number[] {
    const { library, ring, collective } = this.#target
    this.#takeCopies(nowMs)
    this.#order?.goOn()
    const complete: number[] = []
    while (this.#buckets.length > 0) {
      const { event, bucket, ownSegments } = this.#buckets[0] as PendingBucket
      if (!library.eventQuery(event)) break
      this.#buckets.shift()
      ring.reuse(event)
      // its copies were complete before it, though perhaps not yet when they were looked at
      this.#takeCopies(nowMs)
      if (collective === null) this.h2d.end(nowMs, ownSegments)
      else this.broadcast.end(nowMs, ownSegments)
      complete.push(bucket)
    }
    if (complete.length > 0) this.#order?.goOn()
    return complete
  }

  #takeCopies(nowMs: number): void {
    const { library, ring } = this.#target
    const before = this.#copied
    while (this.#copies.length > 0) {
      const event = this.#copies[0] as Handle
      if (!library.eventQuery(event)) break
      this.#copies.shift()
      ring.reuse(event)
      this.h2d.end(nowMs)
      this.broadcast.begin(nowMs)
      this.#copied++
    }
    if (this.#copied > before) this.#tell()
  }

  #tell(): void {
    const { library, collective } = this.#target
    if (!collective?.told) return
    const { member, peers } = collective.told
    Atomics.store(this.#progress[member] as Int32Array, PROGRESS_COPIED, this.#copied)
    for (const [at, peer] of peers.entries()) {
      if (peer !== null && at !== member) library.signalRaise(peer.signal, 0)
    }
  }
}
