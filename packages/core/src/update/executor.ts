import { assert } from '../checkpoint/assert.ts'
import type { Plan } from '../plan/plan.ts'
import type { ExecutorAction, ExecutorEvent } from './executor-types.ts'

/**
 * One rank's part of an update as a state machine: it is told what has happened and says what to
 * do. It knows no clock, no stream and no socket, so the same code runs on devices and in a
 * simulation.
 *
 * Segments are issued in the order of the plan, each as soon as the bucket that it overwrites is
 * acknowledged and its bytes are in host memory: a checkpoint may still be read while it is sent.
 * Lists are announced strictly in order, list k + 1 after the reply to list k. Nothing is issued
 * twice.
 *
 * @example
 * const executor = new Executor(plan, rank, ranks)
 * for (const action of executor.start()) run(action)
 * for (const action of executor.step({ type: 'copied', bucket: 0 })) run(action)
 */
export class Executor {
  private nextSegment = 0
  /** The bucket whose event is recorded next: all before it have been issued completely. */
  private nextRecord = 0
  private announced = -1
  private lastAcked = -1
  private started = false
  private readonly copied: Uint8Array
  private readonly broadcasts: boolean

  /**
   * @param rank this rank, global
   * @param ranks all ranks of the update; with more than one every segment is broadcast
   * @param readable segments `[0, readable)` are in host memory
   */
  constructor(
    private readonly plan: Plan,
    private readonly rank: number,
    ranks: readonly number[],
    private readable = plan.segmentCount,
  ) {
    const members = new Set(ranks)
    assert(members.has(rank), `rank ${rank} is not in the update`)
    for (const owner of plan.bucketRank)
      assert(members.has(owner), `no rank ${owner} in the update`)
    this.copied = new Uint8Array(plan.bucketCount)
    this.broadcasts = ranks.length > 1
  }

  /** The last bucket that the engine has taken, -1 before the first. */
  get acked(): number {
    return this.lastAcked
  }

  /** The first actions; to be called once. */
  start(): ExecutorAction[] {
    assert(!this.started, 'started twice')
    this.started = true
    const actions: ExecutorAction[] = []
    this.issue(actions)
    if (this.plan.bucketCount === 0) actions.push({ type: 'finish' })
    return actions
  }

  step(event: ExecutorEvent): ExecutorAction[] {
    assert(this.started, 'not started')
    const actions: ExecutorAction[] = []
    if (event.type === 'readable') {
      assert(event.segments >= this.readable, `${event.segments} segments are readable again`)
      assert(event.segments <= this.plan.segmentCount, `there is no segment ${event.segments}`)
      this.readable = event.segments
      this.issue(actions)
      return actions
    }
    const { bucket } = event
    if (event.type === 'copied') {
      assert(bucket < this.nextRecord, `the event of bucket ${bucket} was not recorded`)
      assert(this.copied[bucket] === 0, `bucket ${bucket} was copied twice`)
      this.copied[bucket] = 1
      this.announceNext(actions)
      return actions
    }
    assert(bucket === this.lastAcked + 1, `bucket ${bucket} acknowledged out of turn`)
    assert(bucket <= this.announced, `bucket ${bucket} acknowledged before it was announced`)
    this.lastAcked = bucket
    // first the list, so that the engine does not wait while copies are enqueued
    this.announceNext(actions)
    this.issue(actions)
    if (bucket === this.plan.bucketCount - 1) actions.push({ type: 'finish' })
    return actions
  }

  private announceNext(actions: ExecutorAction[]): void {
    const next = this.lastAcked + 1
    if (this.announced >= next || this.copied[next] !== 1) return
    this.announced = next
    actions.push({ type: 'announce', bucket: next })
  }

  private issue(actions: ExecutorAction[]): void {
    const { plan } = this
    while (this.nextRecord < plan.bucketCount) {
      const root = plan.bucketRank[this.nextRecord] as number
      const end = plan.bucketFirstSegment[this.nextRecord + 1] as number
      for (; this.nextSegment < end; this.nextSegment++) {
        const segment = this.nextSegment
        if (segment >= this.readable) return
        if ((plan.segmentAfterAck[segment] as number) > this.lastAcked) return
        if (root === this.rank) actions.push({ type: 'copy', segment })
        if (this.broadcasts) actions.push({ type: 'broadcast', segment, root })
      }
      actions.push({ type: 'record', bucket: this.nextRecord })
      this.nextRecord++
    }
  }
}
