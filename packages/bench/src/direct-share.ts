import { type DirectPlan, type PlacementMap, planDirect } from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import { clockMs } from 'ckpt/daemon/clock'
import { type CopyCalls, copyOrder, DirectCopies } from 'ckpt/daemon/rank/direct-copies'
import { OwnMemory } from 'ckpt/daemon/rank/own-memory'
import { spoil, SPOILED } from './device-bytes.ts'
import type { Checked } from './measure.ts'
import type { Model } from './models.ts'
import { hex } from './pattern-file.ts'
import { placedDigests } from './placed-bytes.ts'
import type { RepeatedPattern } from './repeated-pattern.ts'
import type { CopyCounts } from './row.ts'
import { WAIT_MS } from './streams.ts'

/** What copies need beside a share. */
export interface CopyMeans {
  readonly library: CopyCalls
  readonly signal: Handle
  /** Pinned memory that holds the plan's staging. */
  readonly staging: Handle
}

/** What one rank holds of a checkpoint, in device memory of its own. */
export class DirectShare {
  readonly #library: Library
  readonly #checkpoint: Model
  readonly #pattern: RepeatedPattern
  readonly #map: PlacementMap
  readonly #memories: readonly Handle[]
  readonly #memory: OwnMemory
  readonly #expected: readonly string[]

  /** `stack` frees what it allocates. */
  constructor(
    library: Library,
    stack: DisposableStack,
    device: number,
    checkpoint: Model,
    pattern: RepeatedPattern,
    map: PlacementMap,
  ) {
    this.#library = library
    this.#checkpoint = checkpoint
    this.#pattern = pattern
    this.#map = map
    const allocations = map.allocationBytes.map((bytes) => ({ handle: '', bytes }))
    const memory = new OwnMemory(library, device, allocations)
    stack.defer(() => memory.free())
    memory.open()
    this.#memory = memory
    this.#memories = allocations.map((_, index) => memory.memory(index))
    const copyBytes = pattern.copyTo.bind(pattern)
    this.#expected = placedDigests(map, checkpoint.table, copyBytes, SPOILED)
  }

  /** As the daemon plans it; `stagingBytesMax` 0: nothing is gathered. */
  plan(stagingBytesMax?: number): DirectPlan {
    const { table, sources } = this.#checkpoint
    const plan = planDirect(this.#map, table, sources, { stagingBytesMax })
    if ('reason' in plan) throw new Error(plan.reason)
    return plan
  }

  spoil(): void {
    for (const [index, memory] of this.#memories.entries()) {
      spoil(this.#library, memory, this.#map.allocationBytes[index] as number)
    }
  }

  /** What a rank of the daemon does of an update, without its words to an engine. Blocks until the device has done it. */
  copy(plan: DirectPlan, { library, signal, staging }: CopyMeans): void {
    const buffers = [Uint32Array.of(this.#pattern.buffer)]
    const layout = this.#checkpoint
    const target = { library, signal, plan, layout, buffers, staging: () => staging }
    const copies = new DirectCopies(target, this.#memory)
    const { count } = copyOrder(plan, layout)
    for (;;) {
      copies.enqueue(count, clockMs())
      copies.takeComplete(clockMs())
      if (copies.done) return
      this.#library.signalWait(signal, WAIT_MS)
    }
  }

  /** Each allocation as a whole: what was not copied, and what was written where nothing belongs. */
  check(): Checked {
    const wrong = this.#memories.filter((memory, index) => {
      const bytes = this.#map.allocationBytes[index] as number
      return hex(this.#library.memorySha256(memory, 0, bytes)) !== this.#expected[index]
    })
    return { compared: this.#memories.length, wrong: wrong.length }
  }
}

/** Of all plans together. */
export function countCopies(plans: readonly DirectPlan[]): CopyCounts {
  const sum = (of: (plan: DirectPlan) => number) =>
    plans.reduce((total, plan) => total + of(plan), 0)
  const single = sum(({ copies }) => copies.filter(({ height }) => height === 1).length)
  return {
    single,
    rows: sum(({ copies }) => copies.length) - single,
    pieces: sum(({ staging }) => staging.pieces.length),
    gathered: sum(({ staging }) => staging.copies.length),
  }
}
