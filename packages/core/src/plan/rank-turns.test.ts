import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { makePlan } from './make-plan.ts'
import type { Plan, PlanInput } from './plan.ts'
import { planInputs } from './plan-arbitraries.test.ts'

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

/** Per owner: how many buckets each of its ranks copies. */
function bucketCounts({ ownerRanks }: PlanInput, plan: Plan): number[][] {
  return ownerRanks.map((ranks, owner) =>
    ranks.map((rank) => {
      return plan.bucketRank.filter((r, g) => r === rank && plan.bucketOwner[g] === owner).length
    }),
  )
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

test('with nodes a bucket is copied by a rank on its node, and the ranks of a node have equal numbers', () => {
  const seen = { near: 0, far: 0, moved: 0 }
  fc.assert(
    fc.property(planInputs, manyNodes, manyNodes, (plain, bufferNodes, rankNodes) => {
      const input = withNodes(plain, bufferNodes, rankNodes)
      const plan = makePlan(input)
      for (let g = 0; g < plan.bucketCount; g++) {
        const ranks = input.ownerRanks[plan.bucketOwner[g]!]!
        const rank = plan.bucketRank[g]!
        expect(ranks).toContain(rank)
        const node = nodeOf(input, plan, g)
        if (node < 0 || !ranks.some((other) => rankNodes[other] === node)) seen.far++
        else {
          expect(rankNodes[rank]).toBe(node)
          if (ranks.some((other) => rankNodes[other] !== node)) seen.near++
        }
      }
      for (const [owner, counts] of bucketCounts(input, plan).entries()) {
        for (const node of new Set(rankNodes)) {
          const ranks = input.ownerRanks[owner]!
          const onNode = counts.filter((_, i) => rankNodes[ranks[i]!] === node)
          if (onNode.length > 0) expect(spread(onNode)).toBeLessThanOrEqual(1)
        }
      }
      // nothing else of a plan depends on nodes
      const without = makePlan(plain)
      if (without.digest !== plan.digest) seen.moved++
      const { bucketRank, digest } = without
      expect({ ...plan, bucketRank, digest }).toEqual(without)
    }),
    { numRuns: 300 },
  )
  for (const count of Object.values(seen)) expect(count).toBeGreaterThan(20)
})
