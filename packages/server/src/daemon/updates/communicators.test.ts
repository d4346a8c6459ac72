/** Updates whose ranks meet in communicators. The host library's stand for NCCL's. */
import { expect, setDefaultTimeout, test } from 'bun:test'
import type { UpdateRequest } from '@ckpt/core'
import type { RunningEngine } from '../../engines/reference/index.ts'
import {
  type Bench,
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  withUpdates,
} from './testing/fixture.ts'

setDefaultTimeout(60_000)

const version = (seed: number) => tensorsOf(8, 60_000, seed)
const NCCL = { broadcast: 'nccl', ...SMALL_BUCKETS } as const

async function update(bench: Bench, engine: RunningEngine, more: Partial<UpdateRequest> = {}) {
  const request = { engines: [{ url: engine.url, ranks: [] }], timeout: 20, ...more }
  return await outcomeOf(bench.updates.start(NAME, request).done)
}

test.each([1, 2, 4])('%d ranks keep their communicator from update to update', (rankCount) =>
  withUpdates(
    async (bench) => {
      const engine = await bench.engine()
      const objects: number[] = []
      for (const seed of [1, 2, 3]) {
        await bench.register(version(seed))
        const { report } = await update(bench, engine)
        expect(report?.engines).toMatchObject([{ result: 'ok', torn: false }])
        await requireWeights(engine, version(seed))
        objects.push(bench.library.liveObjects())
      }
      expect(objects[2]).toBe(objects[1]!)
    },
    { ...NCCL, rankCount },
  ),
)

test('a communicator is dropped when no update comes, and the next makes another', () =>
  withUpdates(
    async (bench) => {
      const engine = await bench.engine()
      await bench.register(version(1))
      await update(bench, engine)
      const objects = bench.library.liveObjects()
      await Bun.sleep(400)
      expect(bench.library.liveObjects()).toBe(objects - 2)
      await bench.register(version(2))
      expect((await update(bench, engine)).failure).toBeNull()
      await requireWeights(engine, version(2))
    },
    { ...NCCL, idleCommunicatorMs: 200 },
  ))

test.each(['error@1', 'close@1', 'hang@1'])(
  'after a failure (%s) nobody goes on with it, and the next update is good',
  (fault) =>
    withUpdates(async (bench) => {
      await bench.register(version(1))
      const objects = bench.library.liveObjects()
      const broken = await bench.engine({ faults: [`${fault}:once`] })
      const { failure, seconds } = await update(bench, broken, { timeout: 3 })
      expect(failure).not.toBeNull()
      expect(seconds).toBeLessThan(3 + 2)
      await broken.close()
      expect(bench.library.liveObjects()).toBe(objects)
      const engine = await bench.engine()
      expect((await update(bench, engine)).failure).toBeNull()
      await requireWeights(engine, version(1))
    }, NCCL),
)

test('other ranks make a communicator of their own', () =>
  withUpdates(
    async (bench) => {
      const all = await bench.engine()
      const pair = await bench.engine({ tensorParallelSize: 2 })
      await bench.register(version(1))
      for (let round = 0; round < 2; round++) {
        for (const [engine, ranks] of [
          [all, [0, 1, 2]],
          [pair, [0, 1]],
        ] as const) {
          const engines = [{ url: engine.url, ranks: [...ranks] }]
          const { failure } = await update(bench, engine, { engines, ranks: [...ranks] })
          expect(failure).toBeNull()
          await requireWeights(engine, version(1))
        }
      }
    },
    { ...NCCL, rankCount: 3 },
  ))
