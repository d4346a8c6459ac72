/** Checkpoints and engines of unusual sizes, through the ring and directly. */
import { expect, setDefaultTimeout, test } from 'bun:test'
import { pattern, type TestTensors } from '../registry/testing/fixture.ts'
import { NAME, outcomeOf, tensorsOf, withUpdates } from './testing/fixture.ts'
import { randomTensors, requireParts } from './testing/sharded.ts'

setDefaultTimeout(60_000)

/** More than all others together, of a length that few numbers of ranks divide. */
function withOneLarge(seed: number): TestTensors {
  const bytes = pattern(6_000_006, seed)
  return { ...tensorsOf(6, 10_000, seed), large: { dtype: 'U8', shape: [bytes.length], bytes } }
}

const CASES = [
  { what: 'fewer tensors than ranks', ranks: 5, make: (seed: number) => tensorsOf(2, 1000, seed) },
  { what: 'one tensor, of one byte', ranks: 3, make: (seed: number) => tensorsOf(1, 1, seed) },
  { what: 'one tensor larger than all others together', ranks: 3, make: withOneLarge },
  { what: 'one tensor larger than all others together', ranks: 5, make: withOneLarge },
  { what: 'many tensors', ranks: 5, make: (seed: number) => randomTensors(35, seed) },
  { what: 'many tensors', ranks: 8, make: (seed: number) => randomTensors(56, seed) },
] as const

test.each(CASES)('$what, on $ranks ranks', ({ ranks, make }) =>
  withUpdates(
    async (bench) => {
      const engine = await bench.engine({ direct: true, shardedBy: 'experts' })
      const engines = [{ url: engine.url, ranks: [] }]
      for (const [seed, mode] of (['pipelined', 'direct', 'serial', 'direct'] as const).entries()) {
        const tensors = make(seed)
        await bench.register(tensors)
        const { done } = bench.updates.start(NAME, { engines, timeout: 20, mode })
        const { report, failure } = await outcomeOf(done)
        expect(failure).toBeNull()
        expect(report?.mode).toBe(mode)
        await requireParts(engine, tensors, 'experts')
      }
    },
    { rankCount: ranks, devices: 'host:2' },
  ),
)
