/** Direct updates of several daemons: each host reads once what its ranks need of the others' memory. */
import { describe, expect, test } from 'bun:test'
import type { UpdateReport } from '@ckpt/core'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import { SHARDED_BY } from '../../engines/reference/shard.ts'
import { bytesOf, type TestTensors } from '../registry/testing/fixture.ts'
import {
  outcomeOf,
  requireWeights,
  tensorsOf,
  until,
  weightsOf,
} from '../updates/testing/fixture.ts'
import { randomTensors, requireParts } from '../updates/testing/sharded.ts'
import { type Daemons, NAME, withDaemons } from './testing/daemons.ts'

const REQUEST = { timeout: 30, open_timeout: 10 }
const TEST_MS = 90_000
const MIB = 2 ** 20

/** Every daemon gets some of them, in turns. */
async function registerInTurns({ daemons }: Daemons, tensors: TestTensors): Promise<void> {
  const parts = daemons.map((_, node) => {
    const own = Object.entries(tensors).filter((_entry, i) => i % daemons.length === node)
    return Object.fromEntries(own)
  })
  await Promise.all(daemons.map((daemon, node) => daemon.register(parts[node] as TestTensors)))
}

/** Of two daemons with two ranks each. */
async function anEngineEach({ engine }: Daemons) {
  const options = { direct: true, tensorParallelSize: 2 }
  const both = [await engine(options), await engine(options)] as const
  const engines = both.map(({ url }, node) => ({ url, ranks: [2 * node, 2 * node + 1] }))
  return { both, engines }
}

/** With what little lies between two tensors. */
function requireReadOnce(report: UpdateReport | null, tensors: TestTensors): void {
  const wanted = bytesOf(tensors)
  expect(report?.p2p?.bytes).toBeGreaterThanOrEqual(wanted)
  expect(report?.p2p?.bytes).toBeLessThan(wanted * 1.001)
}

describe.skipIf(withoutUcx !== null)('a direct update of several daemons', () => {
  const CASES = [
    ...SHARDED_BY.map((by) => ({ by, rankCounts: [2, 2] })),
    { by: 'mixed', rankCounts: [2, 2, 2] },
    { by: 'mixed', rankCounts: [4, 4] },
    { by: 'mixed', rankCounts: [2, 2, 2, 2] },
  ] as const

  test.each(CASES)(
    '$by over $rankCounts ranks brings what one through the ring brings',
    async ({ by, rankCounts }) => {
      await withDaemons(rankCounts, async (all) => {
        const [leader] = all.daemons
        const tensorParallelSize = rankCounts.reduce((sum, count) => sum + count, 0)
        const engine = await all.engine({ direct: true, shardedBy: by, tensorParallelSize })
        const engines = [{ url: engine.url, ranks: [] }]
        for (const [seed, mode] of (['pipelined', 'direct', 'serial', 'auto'] as const).entries()) {
          const tensors = randomTensors(tensorParallelSize, seed)
          await registerInTurns(all, tensors)
          const { done } = leader!.updates.start(NAME, { ...REQUEST, engines, mode })
          const { report, failure } = await outcomeOf(done)
          expect(failure).toBeNull()
          expect(report?.mode).toBe(mode === 'auto' ? 'direct' : mode)
          await requireParts(engine, tensors, by)
        }
      })
    },
    TEST_MS,
  )

  test(
    'ranks of a host that need the same read it once, in many chunks',
    async () => {
      await withDaemons([2, 2], async (all) => {
        const [leader, follower] = all.daemons
        const { both, engines } = await anEngineEach(all)
        for (const seed of [1, 2, 3]) {
          // more than the slots of two ranks have room for, of lengths that two ranks do not divide
          const tensors = tensorsOf(40, 5 * MIB + 1, seed)
          await follower!.register(tensors)
          const mode = seed === 1 ? 'pipelined' : 'direct'
          const { done } = leader!.updates.start(NAME, { ...REQUEST, engines, mode })
          const { report, failure } = await outcomeOf(done)
          expect(failure).toBeNull()
          for (const engine of both) await requireWeights(engine, tensors)
          if (seed === 1) continue
          expect(report?.mode).toBe('direct')
          requireReadOnce(report, tensors)
          const { h2d, broadcast } = report!.stages
          expect(h2d.bytes + broadcast.bytes).toBe(4 * bytesOf(tensors))
          // and each byte goes over one link of each host, but for ends that are not worth waiting for
          expect(broadcast.bytes).toBeGreaterThan(1.98 * bytesOf(tensors))
        }
      })
    },
    TEST_MS,
  )

  test(
    'of a host that holds nothing and is not among the ranks of the owner, too',
    async () => {
      await withDaemons([1, 2], async (all) => {
        const [leader] = all.daemons
        const engine = await all.engine({ direct: true, tensorParallelSize: 2 })
        const engines = [{ url: engine.url, ranks: [1, 2] }]
        for (const seed of [1, 2]) {
          const tensors = tensorsOf(9, 100_000, seed)
          await leader!.register(tensors)
          const request = { ...REQUEST, engines, ranks: [1, 2] }
          const report = await leader!.updates.start(NAME, request).done
          expect(report.mode).toBe(seed === 1 ? 'pipelined' : 'direct')
          await requireWeights(engine, tensors)
          requireReadOnce(report, tensors)
        }
      })
    },
    TEST_MS,
  )

  test(
    'of which a host is lost that others read of: torn, and the next one brings all',
    async () => {
      await withDaemons([2, 2], async (all) => {
        const [leader, follower] = all.daemons
        const { both, engines } = await anEngineEach(all)
        const update = (mode: 'pipelined' | 'direct') => {
          return leader!.updates.start(NAME, { ...REQUEST, engines, mode })
        }
        await follower!.register(tensorsOf(60, 4 * MIB, 1))
        await update('pipelined').done
        const { id, done } = update('direct')
        const outcome = outcomeOf(done)
        await until(() => leader!.updates.state(id).buckets_done > 0)
        all.cut(1)
        const { failure, seconds } = await outcome
        expect(failure).toMatchObject({ code: 'node_lost', phase: 'transfer' })
        expect(seconds).toBeLessThan(15)
        expect((await weightsOf(both[0])).torn).toBe(true)
        await until(() => !follower!.updates.node?.busy)
        all.join(1)
        const tensors = tensorsOf(60, 4 * MIB, 2)
        await follower!.register(tensors)
        for (const mode of ['pipelined', 'direct'] as const) {
          expect((await update(mode).done).mode).toBe(mode)
          for (const engine of both) await requireWeights(engine, tensors)
        }
      })
    },
    TEST_MS,
  )

  test(
    'what a host holds in place is read as what others hold',
    async () => {
      await withDaemons([2, 2], async (all) => {
        const [leader, follower] = all.daemons
        const engine = await all.engine({ direct: true, tensorParallelSize: 4 })
        const engines = [{ url: engine.url, ranks: [] }]
        for (const [seed, mode] of (['pipelined', 'direct', 'direct'] as const).entries()) {
          const tensors = tensorsOf(3, 50_000, seed)
          const others = Object.fromEntries(
            Object.entries(tensorsOf(3, 50_000, seed + 9)).map(([name, one]) => [`${name}.b`, one]),
          )
          await leader!.register(tensors)
          await follower!.register(others, { in_place: true })
          const report = await leader!.updates.start(NAME, { ...REQUEST, engines }).done
          expect(report.mode).toBe(mode)
          await requireWeights(engine, { ...tensors, ...others })
        }
      })
    },
    TEST_MS,
  )
})
