/** Engines whose ranks split tensors in every way: a direct update brings the bytes that one through the ring brings. */
import { expect, setDefaultTimeout, test } from 'bun:test'
import { SHARDED_BY } from '../../engines/reference/shard.ts'
import { NAME, outcomeOf, withUpdates } from './testing/fixture.ts'
import { randomTensors, requireParts } from './testing/sharded.ts'

setDefaultTimeout(60_000)

const CASES = SHARDED_BY.flatMap((by) =>
  [2, 3, 4].map((ranks) => ({ by, ranks, layout: 7 * ranks })),
)

test.each(CASES)('$by of $ranks ranks, layout $layout', ({ by, ranks, layout }) =>
  withUpdates(
    async (bench) => {
      const engine = await bench.engine({ direct: true, shardedBy: by })
      const engines = [{ url: engine.url, ranks: [] }]
      for (const [seed, mode] of (['pipelined', 'direct', 'serial', 'direct'] as const).entries()) {
        const tensors = randomTensors(layout, seed)
        await bench.register(tensors)
        const { done } = bench.updates.start(NAME, { engines, timeout: 20, mode })
        const { report, failure } = await outcomeOf(done)
        expect(failure).toBeNull()
        expect(report?.mode).toBe(mode)
        await requireParts(engine, tensors, by)
      }
    },
    { rankCount: ranks, devices: 'host:2' },
  ),
)
