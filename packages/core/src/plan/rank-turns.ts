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
 * A rank near a bucket's memory takes it while it has fewer than this many buckets more than the
 * owner's least loaded rank. So many has one rank of a buffer of 512 MiB in buckets of 128 MiB: two
 * nodes with a rank each, whose buffers alternate, need no rank that is far.
 */
export const LEAD_BUCKETS_MAX = 4

/**
 * Lets the ranks that can copy one owner's memory take turns: the one with the fewest buckets is
 * next, of those on the bucket's node unless they lead by {@link LEAD_BUCKETS_MAX}. So no rank ever
 * has more than that many buckets more than another, wherever ranks and memory are: a link that is
 * left out would copy nothing. Without nodes all have the same number.
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

  /** `node`: the bucket's; -1: none. */
  next(node: number): number {
    const least = this.leastLoaded(-1)
    const near = node < 0 ? -1 : this.leastLoaded(node)
    const best = near >= 0 && this.leadOver(least, near) < LEAD_BUCKETS_MAX ? near : least
    this.counts[best] = (this.counts[best] as number) + 1
    return this.ranks[best] as number
  }

  /** Index of the rank with the fewest buckets on `node` (-1: anywhere); -1: no rank is there. */
  private leastLoaded(node: number): number {
    let best = -1
    for (let i = 0; i < this.ranks.length; i++) {
      if (node >= 0 && this.nodes[i] !== node) continue
      if (best < 0 || (this.counts[i] as number) < (this.counts[best] as number)) best = i
    }
    return best
  }

  private leadOver(least: number, i: number): number {
    return (this.counts[i] as number) - (this.counts[least] as number)
  }
}
