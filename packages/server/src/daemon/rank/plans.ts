import { makePlan, pickleList, type Plan, type PlanInput } from '@ckpt/core'
import type { PlanSummary } from './messages.ts'
import type { CopyOrder } from './source-reads.ts'

/** Plans that a rank keeps, with their pickled lists: one layout of a large model has some ten megabytes of lists. */
const PLANS_MAX = 4

/** A plan with what this rank derives from it once and uses in every update. */
export class HeldPlan {
  readonly input: PlanInput
  readonly plan: Plan
  readonly #buckets: Uint32Array
  readonly #lists: (Uint8Array | undefined)[] = []

  constructor(input: PlanInput) {
    this.input = input
    this.plan = makePlan(input)
    this.#buckets = new Uint32Array(this.plan.segmentCount)
    const { bucketFirstSegment, bucketCount } = this.plan
    for (let bucket = 0; bucket < bucketCount; bucket++) {
      this.#buckets.fill(bucket, bucketFirstSegment[bucket], bucketFirstSegment[bucket + 1])
    }
  }

  bucketOf(segment: number): number {
    return this.#buckets[segment] as number
  }

  /** Of its segments. */
  get order(): CopyOrder {
    const { plan } = this
    return {
      count: plan.segmentCount,
      source: (segment) => ({
        owner: plan.bucketOwner[this.bucketOf(segment)] as number,
        end: plan.segmentSource[segment]! + plan.segmentSize[segment]!,
      }),
    }
  }

  hasList(bucket: number): boolean {
    return this.#lists[bucket] !== undefined
  }

  /** The bucket's pickled tensor list, made on the first call. */
  list(bucket: number): Uint8Array {
    const made = this.#lists[bucket] ?? pickleList(this.plan, this.input.table, bucket)
    this.#lists[bucket] = made
    return made
  }

  pickleAll(): void {
    for (let bucket = 0; bucket < this.plan.bucketCount; bucket++) this.list(bucket)
  }

  summary(): PlanSummary {
    const { plan } = this
    const bytesThrough = new Float64Array(plan.bucketCount)
    let through = 0
    for (let bucket = 0; bucket < plan.bucketCount; bucket++) {
      const end = plan.bucketFirstTensor[bucket + 1] as number
      for (let k = plan.bucketFirstTensor[bucket] as number; k < end; k++) {
        through += this.input.table.bytes[plan.order[k] as number] as number
      }
      bytesThrough[bucket] = through
    }
    return {
      digest: plan.digest,
      mode: plan.mode,
      ringBytes: plan.ringBytes,
      bucketBytes: plan.bucketBytes,
      bucketCount: plan.bucketCount,
      tensorCount: plan.tensorCount,
      totalBytes: plan.totalBytes,
      bytesThrough,
      tensorsThrough: Uint32Array.from(plan.bucketFirstTensor.subarray(1)),
    }
  }
}

/** The plans used last, by key. */
export class PlanShelf {
  readonly #plans = new Map<string, HeldPlan>()

  get(key: string): HeldPlan | null {
    const held = this.#plans.get(key)
    if (held === undefined) return null
    // a Map keeps the order of insertion: the first is the one used longest ago
    this.#plans.delete(key)
    this.#plans.set(key, held)
    return held
  }

  make(key: string, input: PlanInput): HeldPlan {
    const held = new HeldPlan(input)
    this.#plans.delete(key)
    this.#plans.set(key, held)
    for (const oldest of this.#plans.keys()) {
      if (this.#plans.size <= PLANS_MAX) break
      this.#plans.delete(oldest)
    }
    return held
  }
}
