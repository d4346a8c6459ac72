import type { RankInfo } from '../types.ts'

/**
 * The NUMA nodes that the daemon's memory comes from in turn: those of its devices, so that every link has memory near it.
 * Empty where a device's node is not known, or the machine has one.
 */
export function memoryNodes(ranks: readonly Pick<RankInfo, 'numaNode'>[]): number[] {
  const nodes = new Set(ranks.map(({ numaNode }) => numaNode))
  return nodes.has(-1) ? [] : [...nodes].sort((a, b) => a - b)
}

/**
 * How many bytes of a taking each node has. The one with the fewest is next, of equals the lowest: takings of one size are then
 * laid out alike and share their plan.
 */
export class NodeBytes {
  readonly #bytes = new Map<number, number>()

  add({ node, bytes }: { readonly node: number; readonly bytes: number }): void {
    this.#bytes.set(node, this.#of(node) + bytes)
  }

  /** Negative: `a` is next before `b`. */
  compare(a: number, b: number): number {
    return this.#of(a) - this.#of(b) || a - b
  }

  /** -1: there are no nodes. */
  next(nodes: readonly number[]): number {
    return nodes.toSorted((a, b) => this.compare(a, b))[0] ?? -1
  }

  #of(node: number): number {
    return this.#bytes.get(node) ?? 0
  }
}
