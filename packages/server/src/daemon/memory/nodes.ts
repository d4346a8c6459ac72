import type { RankInfo } from '../types.ts'

/**
 * The NUMA node of each rank's device, ascending: the daemon's memory comes from them in turn, so that every link has memory near
 * it. Empty where a device's node is not known, or the machine has one.
 */
export function memoryNodes(ranks: readonly Pick<RankInfo, 'numaNode'>[]): number[] {
  const nodes = ranks.map(({ numaNode }) => numaNode)
  return nodes.includes(-1) ? [] : nodes.sort((a, b) => a - b)
}

/** How many ranks each of the nodes has. */
function countRanks(rankNodes: readonly number[]): Map<number, number> {
  const counts = new Map<number, number>()
  for (const node of rankNodes) counts.set(node, (counts.get(node) ?? 0) + 1)
  return counts
}

/** Buffers of one size in which every node has its turn: the one with the fewest ranks has it least often. 1: there are no nodes. */
export function turnsPerRound(rankNodes: readonly number[]): number {
  if (rankNodes.length === 0) return 1
  return Math.ceil(rankNodes.length / Math.min(...countRanks(rankNodes).values()))
}

/**
 * How many bytes of a taking each node has. The one with the fewest per rank is next, of equals the lowest: every rank then finds
 * as many bytes near it, and takings of one size are laid out alike and share their plan.
 */
export class NodeBytes {
  readonly #rankCounts: ReadonlyMap<number, number>
  readonly #bytes = new Map<number, number>()

  /** `rankNodes`: what {@link memoryNodes} tells. */
  constructor(rankNodes: readonly number[]) {
    this.#rankCounts = countRanks(rankNodes)
  }

  add({ node, bytes }: { readonly node: number; readonly bytes: number }): void {
    this.#bytes.set(node, this.#of(node) + bytes)
  }

  /** Negative: `a` is next before `b`. */
  compare(a: number, b: number): number {
    // bytes per rank, without the rounding of a division
    return this.#of(a) * this.#ranksOn(b) - this.#of(b) * this.#ranksOn(a) || a - b
  }

  /** -1: there are no nodes. */
  next(): number {
    return [...this.#rankCounts.keys()].sort((a, b) => this.compare(a, b))[0] ?? -1
  }

  #of(node: number): number {
    return this.#bytes.get(node) ?? 0
  }

  /** Memory that the kernel did not place counts as one rank's. */
  #ranksOn(node: number): number {
    return this.#rankCounts.get(node) ?? 1
  }
}
