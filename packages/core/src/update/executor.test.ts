import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { makePlan } from '../plan/make-plan.ts'
import type { Plan, PlanInput } from '../plan/plan.ts'
import { anyPlanInputs, planInputs } from '../plan/plan-arbitraries.test.ts'
import { Executor } from './executor.ts'
import type { ExecutorAction } from './executor-types.ts'

/** One piece of work on a rank's streams; `done` in the order in which they were enqueued. */
type Work =
  | { readonly type: 'copy' | 'broadcast'; readonly segment: number }
  | { readonly type: 'record'; readonly bucket: number }

/**
 * A rank with a ring of real numbers (source tags) and two streams, driven by a random choice of
 * what happens next. It fails when an engine would read a byte that is not its tensor's.
 */
class TestRank {
  readonly ring: Float64Array
  readonly copies: Work[] = []
  readonly collective: Work[] = []
  readonly copiedEvents: number[] = []
  readonly announcedBuckets: number[] = []
  readonly copiedSegments = new Set<number>()
  issuedSegments = 0
  /** What it was told of the read. */
  readable: number
  awaited: number | null = null
  finished = false

  constructor(
    readonly rank: number,
    readonly executor: Executor,
    plan: Plan,
    readable: number,
  ) {
    this.ring = new Float64Array(plan.ringBytes)
    this.readable = readable
  }
}

type Step = () => void

class TestCluster {
  readonly ranks: TestRank[]
  private readonly segmentBucket: number[] = []
  readonly copyCount: Uint32Array
  aheadMost = 0

  constructor(
    private readonly input: PlanInput,
    private readonly plan: Plan,
    ranks: readonly number[],
    /** Segments that are in host memory; the others are read during the update. */
    private readSegments = plan.segmentCount,
  ) {
    const readable = readSegments
    this.ranks = ranks.map(
      (rank) => new TestRank(rank, new Executor(plan, rank, ranks, readable), plan, readable),
    )
    this.copyCount = new Uint32Array(plan.segmentCount)
    for (let g = 0; g < plan.bucketCount; g++) {
      const count = plan.bucketFirstSegment[g + 1]! - plan.bucketFirstSegment[g]!
      for (let k = 0; k < count; k++) this.segmentBucket.push(g)
    }
  }

  /** Runs to the end; `choose` picks one of the steps that are possible. */
  run(choose: (count: number) => number): void {
    for (const rank of this.ranks) this.perform(rank, rank.executor.start())
    for (;;) {
      const steps = this.ranks.flatMap((rank) => this.steps(rank))
      if (this.readSegments < this.plan.segmentCount) steps.push(() => this.readSegments++)
      const step = steps[choose(steps.length)]
      if (step === undefined) break
      step()
    }
    for (const rank of this.ranks) {
      expect(rank.finished).toBe(true)
      expect(rank.executor.acked).toBe(this.plan.bucketCount - 1)
      expect(rank.issuedSegments).toBe(this.ranks.length > 1 ? this.plan.segmentCount : 0)
      expect(rank.copies.length + rank.collective.length + rank.copiedEvents.length).toBe(0)
    }
    for (const count of this.copyCount) expect(count).toBe(1)
  }

  private perform(rank: TestRank, actions: readonly ExecutorAction[]): void {
    const { plan } = this
    for (const action of actions) {
      expect(rank.finished).toBe(false)
      if (action.type === 'copy') {
        expect(plan.bucketRank[this.segmentBucket[action.segment]!]).toBe(rank.rank)
        expect(action.segment).toBeLessThan(this.readSegments)
        rank.copies.push(action)
      } else if (action.type === 'broadcast') {
        expect(action.segment).toBe(rank.issuedSegments++)
        expect(action.root).toBe(plan.bucketRank[this.segmentBucket[action.segment]!]!)
        rank.collective.push(action)
      } else if (action.type === 'record') {
        const stream = this.ranks.length > 1 ? rank.collective : rank.copies
        stream.push(action)
      } else if (action.type === 'announce') {
        expect(rank.awaited).toBeNull()
        expect(action.bucket).toBe(rank.announcedBuckets.length)
        rank.announcedBuckets.push(action.bucket)
        rank.awaited = action.bucket
        this.read(rank, action.bucket)
      } else rank.finished = true
    }
  }

  private steps(rank: TestRank): Step[] {
    const steps: Step[] = []
    if (rank.readable < this.readSegments) {
      steps.push(() => {
        rank.readable = this.readSegments
        this.perform(rank, rank.executor.step({ type: 'readable', segments: rank.readable }))
      })
    }
    const copy = rank.copies[0]
    if (copy?.type === 'copy') steps.push(() => this.finishCopy(rank, copy.segment))
    else if (copy?.type === 'record') steps.push(() => this.finishRecord(rank, rank.copies))
    const next = rank.collective[0]
    if (next?.type === 'record') steps.push(() => this.finishRecord(rank, rank.collective))
    else if (next?.type === 'broadcast' && this.meets(rank, next.segment)) {
      steps.push(() => this.finishBroadcast(rank, next.segment))
    }
    // events may be seen in any order
    rank.copiedEvents.forEach((bucket, k) => {
      steps.push(() => {
        rank.copiedEvents.splice(k, 1)
        this.perform(rank, rank.executor.step({ type: 'copied', bucket }))
      })
    })
    const bucket = rank.awaited
    if (bucket !== null) {
      steps.push(() => {
        this.read(rank, bucket)
        rank.awaited = null
        this.perform(rank, rank.executor.step({ type: 'acked', bucket }))
        const issued = this.segmentBucket[rank.issuedSegments - 1] ?? 0
        this.aheadMost = Math.max(this.aheadMost, issued - rank.executor.acked)
      })
    }
    return steps
  }

  /**
   * A broadcast runs when it is the next thing of every rank and its root has the bytes. Steps come
   * from the root only.
   */
  private meets(rank: TestRank, segment: number): boolean {
    return (
      rank.copiedSegments.has(segment) &&
      this.ranks.every(({ collective }) => {
        const head = collective[0]
        return head?.type === 'broadcast' && head.segment === segment
      })
    )
  }

  private finishCopy(rank: TestRank, segment: number): void {
    const { plan } = this
    const owner = plan.bucketOwner[this.segmentBucket[segment]!]!
    const [from, at] = [plan.segmentSource[segment]!, plan.segmentRing[segment]!]
    for (let b = 0; b < plan.segmentSize[segment]!; b++) rank.ring[at + b] = tag(owner, from + b)
    rank.copies.shift()
    rank.copiedSegments.add(segment)
    this.copyCount[segment] = this.copyCount[segment]! + 1
  }

  private finishBroadcast(root: TestRank, segment: number): void {
    const at = this.plan.segmentRing[segment]!
    const end = at + this.plan.segmentSize[segment]!
    for (const rank of this.ranks) {
      rank.ring.set(root.ring.slice(at, end), at)
      rank.collective.shift()
    }
  }

  private finishRecord(rank: TestRank, stream: Work[]): void {
    const work = stream.shift()
    if (work?.type === 'record') rank.copiedEvents.push(work.bucket)
  }

  private read(rank: TestRank, g: number): void {
    const { plan, input } = this
    const { table } = input
    const [first, end] = [plan.bucketFirstTensor[g]!, plan.bucketFirstTensor[g + 1]!]
    for (const i of plan.order.subarray(first, end)) {
      for (let b = 0; b < table.bytes[i]!; b++) {
        const held = rank.ring[plan.tensorRing[i]! + b]
        if (held !== tag(table.owners[i]!, table.offsets[i]! + b)) {
          throw new Error(`rank ${rank.rank}: byte ${b} of '${table.names[i]}' holds ${held}`)
        }
      }
    }
  }
}

function tag(owner: number, offset: number): number {
  return owner * 2 ** 24 + offset + 1
}

describe('executors', () => {
  test('move every byte to every engine, in whatever order things happen', () => {
    let ahead = 0
    fc.assert(
      fc.property(
        anyPlanInputs,
        fc.nat({ max: 2 }),
        fc.option(fc.nat()),
        fc.infiniteStream(fc.nat()),
        (input, more, unread, random) => {
          const plan = makePlan(input)
          const read = plan.segmentCount - ((unread ?? 0) % (plan.segmentCount + 1))
          const owners = new Set(input.ownerRanks.flat())
          // ranks that own nothing
          for (let k = 0; k < more; k++) owners.add(10 + k)
          const cluster = new TestCluster(input, plan, [...owners], read)
          cluster.run((count) => (count === 0 ? 0 : (random.next().value as number) % count))
          if (cluster.aheadMost > 1) ahead++
        },
      ),
      { numRuns: 200 },
    )
    // it is pipelined: some runs have buckets on the way beyond the next one
    expect(ahead).toBeGreaterThan(50)
  }, 60_000)

  test('also a single rank, which broadcasts nothing', () => {
    fc.assert(
      fc.property(planInputs, fc.boolean(), fc.infiniteStream(fc.nat()), (input, all, random) => {
        const alone = { ...input, ownerRanks: input.ownerRanks.map(() => [2]) }
        const plan = makePlan(alone)
        const cluster = new TestCluster(alone, plan, [2], all ? plan.segmentCount : 0)
        cluster.run((count) => (count === 0 ? 0 : (random.next().value as number) % count))
      }),
      { numRuns: 150 },
    )
  }, 60_000)
})

describe('an executor', () => {
  const plan: Plan = {
    mode: 'pipelined',
    ringBytes: 512,
    bucketBytes: 256,
    totalBytes: 768,
    tensorCount: 3,
    bucketCount: 3,
    segmentCount: 4,
    order: Uint32Array.of(0, 1, 2),
    tensorRing: Float64Array.of(0, 256, 0),
    bucketFirstTensor: Uint32Array.of(0, 1, 2, 3),
    bucketFirstSegment: Uint32Array.of(0, 1, 3, 4),
    bucketRing: Float64Array.of(0, 256, 0),
    bucketSize: Float64Array.of(256, 256, 256),
    bucketOwner: Uint32Array.of(0, 0, 0),
    bucketRank: Uint32Array.of(0, 1, 0),
    segmentSource: Float64Array.of(0, 256, 384, 512),
    segmentRing: Float64Array.of(0, 256, 384, 0),
    segmentSize: Float64Array.of(256, 128, 128, 256),
    segmentAfterAck: Int32Array.of(-1, -1, -1, 0),
    digest: '',
  }

  test('issues what fits at once, announces in order, and the list before the copies', () => {
    const executor = new Executor(plan, 0, [0, 1])
    expect(executor.start()).toEqual([
      { type: 'copy', segment: 0 },
      { type: 'broadcast', segment: 0, root: 0 },
      { type: 'record', bucket: 0 },
      { type: 'broadcast', segment: 1, root: 1 },
      { type: 'broadcast', segment: 2, root: 1 },
      { type: 'record', bucket: 1 },
    ])
    expect(executor.acked).toBe(-1)
    expect(executor.step({ type: 'copied', bucket: 1 })).toEqual([])
    expect(executor.step({ type: 'copied', bucket: 0 })).toEqual([{ type: 'announce', bucket: 0 }])
    expect(executor.step({ type: 'acked', bucket: 0 })).toEqual([
      { type: 'announce', bucket: 1 },
      { type: 'copy', segment: 3 },
      { type: 'broadcast', segment: 3, root: 0 },
      { type: 'record', bucket: 2 },
    ])
    expect(executor.step({ type: 'copied', bucket: 2 })).toEqual([])
    expect(executor.step({ type: 'acked', bucket: 1 })).toEqual([{ type: 'announce', bucket: 2 }])
    expect(executor.step({ type: 'acked', bucket: 2 })).toEqual([{ type: 'finish' }])
    expect(executor.acked).toBe(2)
  })

  test('issues segments as they become readable, and a bucket is recorded behind its last one', () => {
    const executor = new Executor(plan, 1, [0, 1], 0)
    expect(executor.start()).toEqual([])
    expect(executor.step({ type: 'readable', segments: 2 })).toEqual([
      { type: 'broadcast', segment: 0, root: 0 },
      { type: 'record', bucket: 0 },
      { type: 'copy', segment: 1 },
      { type: 'broadcast', segment: 1, root: 1 },
    ])
    expect(executor.step({ type: 'readable', segments: 4 })).toEqual([
      { type: 'copy', segment: 2 },
      { type: 'broadcast', segment: 2, root: 1 },
      { type: 'record', bucket: 1 },
    ])
    expect(() => executor.step({ type: 'readable', segments: 3 })).toThrow('readable again')
    expect(() => executor.step({ type: 'readable', segments: 5 })).toThrow('there is no segment 5')
  })

  test('refuses events that cannot be', () => {
    const started = () => {
      const executor = new Executor(plan, 0, [0, 1])
      executor.start()
      return executor
    }
    expect(() => started().start()).toThrow('started twice')
    expect(() => new Executor(plan, 0, [0, 1]).step({ type: 'copied', bucket: 0 })).toThrow(
      'not started',
    )
    expect(() => started().step({ type: 'copied', bucket: 2 })).toThrow('was not recorded')
    expect(() => started().step({ type: 'acked', bucket: 0 })).toThrow('before it was announced')
    expect(() => started().step({ type: 'acked', bucket: 1 })).toThrow('out of turn')
    const twice = started()
    twice.step({ type: 'copied', bucket: 1 })
    expect(() => twice.step({ type: 'copied', bucket: 1 })).toThrow('copied twice')
    expect(() => new Executor(plan, 2, [0, 1])).toThrow('rank 2 is not in the update')
    expect(() => new Executor(plan, 0, [0])).toThrow('no rank 1 in the update')
  })

  test('has nothing to do for an empty plan', () => {
    const empty = { ...plan, bucketCount: 0, segmentCount: 0, bucketRank: new Uint32Array(0) }
    expect(new Executor(empty, 0, [0]).start()).toEqual([{ type: 'finish' }])
  })
})
