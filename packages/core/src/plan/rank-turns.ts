import type { TensorTable } from '../checkpoint/table.ts'
import type { SourceMap } from './source-map.ts'

/**
 * The NUMA node that at least two thirds of a bucket's bytes lie on; -1: there is none, so that a
 * rank of any node is as good.
 */
export function bucketNode(table: TensorTable, tensors: Uint32Array, source: SourceMap): number {
  const nodeBytes = new Map<number, number>()
  let bytes = 0
  for (const tensor of tensors) {
    const begin = table.offsets[tensor] as number
    const size = table.bytes[tensor] as number
    if (size > 0) source.addNodeBytes(begin, begin + size, nodeBytes)
    bytes += size
  }
  for (const [node, some] of nodeBytes) if (3 * some >= 2 * bytes) return node
  return -1
}

/**
 * Lets the ranks that can copy one owner's memory take turns: the one with the fewest buckets is
 * next, of those on the bucket's node where there are any. So the ranks of a node have the same
 * number, and without nodes all have.
 */
export class RankTurns {
  private readonly counts: Uint32Array
  private readonly nodes: readonly number[]

  constructor(
    private readonly ranks: readonly number[],
    rankNodes: readonly number[],
  ) {
    this.counts = new Uint32Array(ranks.length)
    this.nodes = ranks.map((rank) => rankNodes[rank] ?? -1)
  }

  next(node: number): number {
    const near = node >= 0 && this.nodes.includes(node)
    let best = -1
    for (let i = 0; i < this.ranks.length; i++) {
      if (near && this.nodes[i] !== node) continue
      if (best < 0 || (this.counts[i] as number) < (this.counts[best] as number)) best = i
    }
    this.counts[best] = (this.counts[best] as number) + 1
    return this.ranks[best] as number
  }
}
