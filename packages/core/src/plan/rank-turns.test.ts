import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { makePlan } from './make-plan.ts'
import type { Plan, PlanInput } from './plan.ts'
import { planInputs } from './plan-arbitraries.test.ts'
import { LEAD_BUCKETS_MAX, RankTurns } from './rank-turns.ts'

const MANY = 64
const manyNodes = fc.array(fc.integer({ min: -1, max: 2 }), { minLength: MANY, maxLength: MANY })

/** The same input with the NUMA nodes of buffers and ranks. */
function withNodes(
  input: PlanInput,
  bufferNodes: readonly number[],
  rankNodes: readonly number[],
): PlanInput {
  const sources = input.sources.map((space, owner) => {
    const nodes = Int32Array.from(space.starts, (_, k) => bufferNodes[(owner * 20 + k) % MANY]!)
    return { ...space, nodes }
  })
  return { ...input, sources, rankNodes }
}

/** Byte by byte, the node with two thirds of a bucket; -1: none. */
function nodeOf({ table, sources }: PlanInput, plan: Plan, bucket: number): number {
  const { starts, nodes } = sources[plan.bucketOwner[bucket]!]!
  const counts = new Map<number, number>()
  let bytes = 0
  const end = plan.bucketFirstTensor[bucket + 1]
  for (const tensor of plan.order.subarray(plan.bucketFirstTensor[bucket], end)) {
    for (let b = 0; b < table.bytes[tensor]!; b++) {
      const node = nodes![starts.findLastIndex((start) => start <= table.offsets[tensor]! + b)]!
      counts.set(node, (counts.get(node) ?? 0) + 1)
      bytes++
    }
  }
  const found = [...counts].find(([node, count]) => node >= 0 && 3 * count >= 2 * bytes)
  return found?.[0] ?? -1
}

const spread = (counts: readonly number[]) => Math.max(...counts) - Math.min(...counts)

test('without nodes the ranks of an owner take turns bucket by bucket, in their order', () => {
  fc.assert(
    fc.property(planInputs, manyNodes, (input, nodes) => {
      const plan = makePlan(input)
      const seen = input.ownerRanks.map(() => 0)
      for (const [g, owner] of plan.bucketOwner.entries()) {
        const ranks = input.ownerRanks[owner]!
        expect(plan.bucketRank[g]).toBe(ranks[seen[owner]! % ranks.length]!)
        seen[owner]!++
      }
      // one of the two is not known, or all is on one node
      const unknown = nodes.map(() => -1)
      const one = nodes.map(() => 1)
      const { rankNodes: _, ...noRanks } = withNodes(input, nodes, nodes)
      for (const same of [
        noRanks,
        { ...input, rankNodes: nodes },
        withNodes(input, nodes, unknown),
        withNodes(input, unknown, nodes),
        withNodes(input, one, one),
      ]) {
        expect(makePlan(same)).toEqual(plan)
      }
    }),
    { numRuns: 200 },
  )
})

/** How many buckets each rank of an owner has so far, and what the next one tells of the rules. */
class Watch {
  readonly counts: number[]

  constructor(readonly nodes: readonly number[]) {
    this.counts = nodes.map(() => 0)
  }

  /** A bucket of `node` goes to the rank at `index`. */
  see(node: number, index: number): 'near' | 'far' | 'ahead' {
    const least = Math.min(...this.counts)
    const onNode = this.counts.filter((_, i) => node >= 0 && this.nodes[i] === node)
    this.counts[index]!++
    expect(spread(this.counts)).toBeLessThanOrEqual(LEAD_BUCKETS_MAX)
    if (onNode.length > 0 && Math.min(...onNode) - least < LEAD_BUCKETS_MAX) {
      expect(this.nodes[index]).toBe(node)
      return 'near'
    }
    expect(this.counts[index]).toBe(least + 1)
    return onNode.length > 0 ? 'ahead' : 'far'
  }

  /** The ranks of a node have equal numbers. */
  end(): void {
    for (const node of new Set(this.nodes)) {
      const onNode = this.counts.filter((_, i) => this.nodes[i] === node)
      expect(spread(onNode)).toBeLessThanOrEqual(1)
    }
  }
}

test('with nodes a bucket is copied by a rank on its node that does not lead, and nothing else changes', () => {
  const seen = { near: 0, far: 0, ahead: 0 }
  let moved = 0
  fc.assert(
    fc.property(planInputs, manyNodes, manyNodes, (plain, bufferNodes, rankNodes) => {
      const input = withNodes(plain, bufferNodes, rankNodes)
      const plan = makePlan(input)
      const watches = input.ownerRanks.map(
        (ranks) => new Watch(ranks.map((rank) => rankNodes[rank]!)),
      )
      for (let g = 0; g < plan.bucketCount; g++) {
        const owner = plan.bucketOwner[g]!
        const index = input.ownerRanks[owner]!.indexOf(plan.bucketRank[g]!)
        seen[watches[owner]!.see(nodeOf(input, plan, g), index)]++
      }
      for (const watch of watches) watch.end()
      const without = makePlan(plain)
      if (without.digest !== plan.digest) moved++
      const { bucketRank, digest } = without
      expect({ ...plan, bucketRank, digest }).toEqual(without)
    }),
    { numRuns: 300 },
  )
  // so few buckets seldom give a rank the lead: the next test sees to that
  for (const count of [seen.near, seen.far, moved]) expect(count).toBeGreaterThan(20)
})

/** Buckets one after another whose memory is on a node; -1: on none. */
const runs = fc.array(
  fc.record({
    node: fc.integer({ min: -1, max: 3 }),
    bucketCount: fc.integer({ min: 1, max: 40 }),
  }),
  { minLength: 1, maxLength: 8 },
)

test('however ranks and memory lie, no rank has more than the lead more buckets than another', () => {
  const seen = { near: 0, far: 0, ahead: 0 }
  const rankNodes = fc.array(fc.integer({ min: -1, max: 3 }), { minLength: 12, maxLength: 12 })
  const ranksOf = fc.subarray([...Array(12).keys()], { minLength: 1 })
  fc.assert(
    fc.property(rankNodes, ranksOf, runs, (all, ranks, memory) => {
      const turns = new RankTurns(ranks, all)
      const watch = new Watch(ranks.map((rank) => all[rank]!))
      for (const { node, bucketCount } of memory) {
        for (let k = 0; k < bucketCount; k++) {
          seen[watch.see(node, ranks.indexOf(turns.next(node)))]++
        }
      }
      watch.end()
    }),
    { numRuns: 500 },
  )
  for (const count of Object.values(seen)) expect(count).toBeGreaterThan(100)
})

test('where nodes have as many ranks and their memory alternates, every bucket stays near', () => {
  const small = fc.integer({ min: 1, max: 4 })
  const lead = fc.integer({ min: 1, max: LEAD_BUCKETS_MAX })
  fc.assert(
    fc.property(small, small, lead, small, (nodeCount, ranksPerNode, bucketsPerRank, rounds) => {
      const nodes = Array.from({ length: nodeCount * ranksPerNode }, (_, rank) => rank % nodeCount)
      const turns = new RankTurns([...nodes.keys()], nodes)
      for (let k = 0; k < rounds * nodeCount; k++) {
        for (let i = 0; i < bucketsPerRank * ranksPerNode; i++) {
          expect(nodes[turns.next(k % nodeCount)]).toBe(k % nodeCount)
        }
      }
    }),
  )
})

test('the busiest rank of unequal nodes has its share and the lead at most', () => {
  for (const [rankNodes, node, counts] of [
    [[0, 0, 0, 1], 1, [29, 29, 29, 33]],
    [[0, 0, 0, 1], 0, [31, 31, 31, 27]],
    [[0, 0, 0, 0, 0, 0, 0, 1], 1, [15, 15, 15, 15, 14, 14, 14, 18]],
  ] as const) {
    const turns = new RankTurns([...rankNodes.keys()], rankNodes)
    const copied: number[] = rankNodes.map(() => 0)
    for (let g = 0; g < 120; g++) copied[turns.next(node)]!++
    expect(copied).toEqual([...counts])
  }
})
