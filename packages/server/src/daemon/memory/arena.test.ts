import { describe, expect, test } from 'bun:test'
import { buildTable, makePlan } from '@ckpt/core'
import { type Library, openLibrary } from '@ckpt/cuda'
import fc from 'fast-check'
import { failure, LIBRARY } from '../registry/testing/fixture.ts'
import { Arena, type ArenaBuffer, type Taking } from './arena.ts'
import { memoryNodes, turnsPerRound } from './nodes.ts'
import { BUFFER_BYTES_MAX, GRANULE_BYTES, MIB, sizeClass } from './size-class.ts'

const library = openLibrary(LIBRARY)

async function withArena(budgetBytes: number, run: (arena: Arena) => Promise<void>) {
  const before = library.liveObjects()
  const arena = new Arena(library, budgetBytes)
  await run(arena)
  arena.trim(null)
  expect(arena.usedBytes).toBe(0)
  expect(arena.pinnedBytes).toBe(0)
  expect(library.liveObjects()).toBe(before)
}

/** On a machine with ranks on these NUMA nodes, whose kernel refuses memory of node 7. Takes no memory at all. */
async function withNodes(rankNodes: readonly number[], run: (arena: Arena) => Promise<void>) {
  const live = new Set<number>()
  let last = 0
  const near = {
    bufferAllocNear: (_: number, node: number) => {
      live.add(++last)
      return { buffer: last, placed: node !== 7 }
    },
    bufferFree: (buffer: number) => live.delete(buffer),
  }
  const arena = new Arena(near as unknown as Library, 2 ** 40, rankNodes)
  await run(arena)
  arena.trim(null)
  expect(live.size).toBe(0)
}

const nodesOf = ({ buffers }: Taking) => buffers.map(({ node }) => node)

const total = (buffers: readonly ArenaBuffer[]) =>
  buffers.reduce((sum, { bytes }) => sum + bytes, 0)

function sourceOf({ buffers }: Taking) {
  const bytes = Float64Array.from(buffers, (buffer) => buffer.bytes)
  const starts = bytes.map((_, k) => bytes.subarray(0, k).reduce((sum, size) => sum + size, 0))
  return { starts, bytes, nodes: Int32Array.from(buffers, ({ node }) => node) }
}

/** Of 120 tensors of 128 MiB in this memory, each of which is a bucket. */
function planOf(taking: Taking, rankNodes: readonly number[]) {
  const bytes = 128 * MIB
  const rows = Array.from({ length: 120 }, (_, i) => {
    return { name: `${i}`, dtype: 0, shape: [bytes], bytes, owner: 0, offset: i * bytes }
  })
  return makePlan({
    table: buildTable(rows),
    sources: [sourceOf(taking)],
    ownerRanks: [[...rankNodes.keys()]],
    rankNodes,
    mode: 'pipelined',
    ringBytes: 1024 * MIB,
    bucketBytes: bytes,
    segmentBytes: 16 * MIB,
  })
}

test('size classes hold what is asked for, in whole granules, with at most an eighth unused', () => {
  for (let bytes = 1; bytes <= BUFFER_BYTES_MAX; bytes = Math.ceil(bytes * 1.07)) {
    const size = sizeClass(bytes)
    expect(size).toBeGreaterThanOrEqual(bytes)
    expect(size % GRANULE_BYTES).toBe(0)
    expect(size).toBeLessThanOrEqual(Math.max(bytes * 1.125 + GRANULE_BYTES, GRANULE_BYTES))
    expect(sizeClass(size)).toBe(size)
  }
  expect(sizeClass(BUFFER_BYTES_MAX)).toBe(BUFFER_BYTES_MAX)
})

describe('an arena', () => {
  test('covers a taking with free buffers of any sizes', () =>
    withArena(64 * MIB, async (arena) => {
      const takings = await Promise.all([10, 4, 6].map((size) => arena.take(size * MIB)))
      for (const { buffers } of takings) arena.giveBack(buffers)
      const objects = library.liveObjects()
      const all = await arena.take(20 * MIB)
      expect(library.liveObjects()).toBe(objects)
      expect(all.fresh.size).toBe(0)
      expect(total(all.buffers)).toBe(20 * MIB)
      arena.giveBack(all.buffers)
    }))

  test('keeps at most what was in use at one time', () =>
    withArena(256 * MIB, async (arena) => {
      let held: Taking = await arena.take(2 * MIB)
      for (let round = 0; round < 100; round++) {
        const next = await arena.take((2 + ((round * 31) % 40)) * MIB)
        arena.giveBack(held.buffers)
        held = next
        expect(arena.pinnedBytes).toBeLessThanOrEqual(2 * 1.25 * 42 * MIB)
      }
      arena.giveBack(held.buffers)
    }))

  test('gives memory that fits nothing back instead of growing', () =>
    withArena(256 * MIB, async (arena) => {
      arena.giveBack((await arena.take(40 * MIB)).buffers)
      const small = await arena.take(2 * MIB)
      expect(arena.pinnedBytes).toBe(2 * MIB)
      arena.giveBack(small.buffers)
    }))

  test('undoing frees what was made and keeps what was there', () =>
    withArena(64 * MIB, async (arena) => {
      arena.giveBack((await arena.take(8 * MIB)).buffers)
      const objects = library.liveObjects()
      const taking = await arena.take(20 * MIB)
      expect(taking.fresh.size).toBe(1)
      expect(taking.buffers.length).toBe(2)
      arena.undo(taking)
      expect(library.liveObjects()).toBe(objects)
      expect(arena.pinnedBytes).toBe(8 * MIB)
      expect(arena.usedBytes).toBe(0)
    }))

  test('takes at the same time cannot exceed the budget together', () =>
    withArena(20 * MIB, async (arena) => {
      const settled = await Promise.allSettled([arena.take(12 * MIB), arena.take(12 * MIB)])
      expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
      expect(settled[1]).toMatchObject({ reason: { shortBytes: 4 * MIB } })
      arena.giveBack((settled[0] as PromiseFulfilledResult<Taking>).value.buffers)
    }))

  test('near the budget the slack of a size class is not taken', () =>
    withArena(38 * MIB, async (arena) => {
      expect(sizeClass(38 * MIB)).toBe(40 * MIB)
      const taking = await arena.take(38 * MIB)
      expect(arena.pinnedBytes).toBe(38 * MIB)
      arena.giveBack(taking.buffers)
    }))

  test('a taking of nothing has no buffers', () =>
    withArena(MIB, async (arena) => {
      expect((await arena.take(0)).buffers).toEqual([])
    }))

  test('what the machine cannot give is host_memory_exhausted, and nothing is taken', () =>
    withArena(Number.MAX_SAFE_INTEGER, async (arena) => {
      const objects = library.liveObjects()
      const bytes = 2 ** 46
      // the first buffers exist already when the machine refuses the next
      await failure(() => arena.share('m', [4 * MIB, bytes]), 'host_memory_exhausted')
      expect(library.liveObjects()).toBe(objects)
      expect(arena.pinnedBytes).toBe(0)
    }))

  test('shared memory goes to nobody but the one who had it', () =>
    withArena(64 * MIB, async (arena) => {
      const [one, two] = await arena.share('a', [4 * MIB, 6 * MIB])
      const path = library.bufferPath(one!.buffer)
      arena.giveBackShared('a', [one!])
      arena.unshare([two!])
      const [other] = await arena.share('b', [4 * MIB])
      expect(library.bufferPath(other!.buffer)).not.toBe(path)
      arena.unshare([other!])
      const [again] = await arena.share('a', [4 * MIB - 1])
      expect(library.bufferPath(again!.buffer)).toBe(path)
      arena.giveBackShared('a', [again!])
    }))
})

describe('an arena with NUMA nodes', () => {
  test('takes turns over the nodes, in buffers of which a ring holds some of each', () =>
    withNodes([0, 1], async (arena) => {
      const taking = await arena.take(1600 * MIB)
      expect(taking.buffers.map(({ bytes }) => bytes / MIB)).toEqual([512, 512, 512, 64])
      expect(nodesOf(taking)).toEqual([0, 1, 0, 1])
      arena.undo(taking)
    }))

  test('takes what is missing beside used memory from the node with less of it', () =>
    withNodes([0, 1], async (arena) => {
      const small = [await arena.take(8 * MIB), await arena.take(8 * MIB)]
      expect(small.flatMap(nodesOf)).toEqual([0, 0])
      for (const { buffers } of small) arena.giveBack(buffers)
      const taking = await arena.take(40 * MIB)
      expect(taking.fresh.size).toBe(1)
      expect(nodesOf(taking)).toEqual([0, 0, 1])
      arena.giveBack(taking.buffers)
    }))

  test('lays takings of one size out alike, in whatever order their memory comes back', () =>
    withNodes([0, 2], async (arena) => {
      const one = await arena.take(2500 * MIB)
      const two = await arena.take(2500 * MIB)
      expect(nodesOf(one)).toEqual([0, 2, 0, 2, 0])
      expect(nodesOf(two)).toEqual(nodesOf(one))
      arena.giveBack([...two.buffers, ...one.buffers].reverse())
      const third = await arena.take(2500 * MIB)
      expect(third.fresh.size).toBe(0)
      expect(nodesOf(third)).toEqual(nodesOf(one))
      arena.giveBack(third.buffers)
    }))

  test('does not tell of a node where the kernel refused one', () =>
    withNodes([7], async (arena) => {
      const taking = await arena.take(8 * MIB)
      expect(nodesOf(taking)).toEqual([-1])
      arena.undo(taking)
    }))

  test('takes each buffer from the node that has the fewest per rank, and some of every node in a round', () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 12 }),
        fc.integer({ min: 1, max: 40_000 }),
        (rankNodes, mib) =>
          withNodes(rankNodes, async (arena) => {
            const taking = await arena.take(mib * MIB)
            const ranksOn = (node: number) => rankNodes.filter((other) => other === node).length
            const counts = new Map(rankNodes.map((node) => [node, 0]))
            // the last one may be smaller
            for (const node of nodesOf(taking).slice(0, -1)) {
              const shares = [...counts].map(([other, count]) => count / ranksOn(other))
              expect(counts.get(node)! / ranksOn(node)).toBe(Math.min(...shares))
              counts.set(node, counts.get(node)! + 1)
            }
            const first = nodesOf(taking).slice(0, turnsPerRound(rankNodes))
            if (taking.buffers.length > first.length)
              expect(new Set(first)).toEqual(new Set(rankNodes))
            arena.undo(taking)
          }),
      ),
    ))

  test('and a plan of its memory give every rank as many buckets, all of them near', async () => {
    for (const rankNodes of [
      [0, 1],
      [0, 0, 0, 1],
      [0, 0, 0, 0, 0, 0, 0, 1],
      [3, 0, 0, 3],
    ]) {
      await withNodes(rankNodes, async (arena) => {
        const taking = await arena.take(120 * 128 * MIB)
        const { bucketRank } = planOf(taking, rankNodes)
        const counts = rankNodes.map((_, rank) => bucketRank.filter((r) => r === rank).length)
        expect(counts).toEqual(rankNodes.map(() => 120 / rankNodes.length))
        const { starts, nodes } = sourceOf(taking)
        for (const [g, rank] of bucketRank.entries()) {
          const buffer = starts.findLastIndex((start) => start <= g * 128 * MIB)
          expect(rankNodes[rank]).toBe(nodes[buffer]!)
        }
        arena.undo(taking)
      })
    }
  })

  test('has the nodes of its ranks, or none', () => {
    const nodes = (...numaNodes: number[]) =>
      memoryNodes(numaNodes.map((numaNode) => ({ numaNode })))
    expect(nodes(3, 0, 3, 1)).toEqual([0, 1, 3, 3])
    expect(nodes(1, 1)).toEqual([1, 1])
    expect(nodes(-1, 1)).toEqual([])
    expect(nodes(-1, -1)).toEqual([])
  })
})
