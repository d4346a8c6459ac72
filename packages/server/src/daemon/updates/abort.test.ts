import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { ZmqContext } from '@ckpt/cuda'
import {
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  until,
  weightsOf,
  withUpdates,
} from './testing/fixture.ts'
import { scriptedWorker } from './testing/scripted-worker.ts'

setDefaultTimeout(240_000)

const ROUNDS = 30
const EARLY: readonly (string | null)[] = [null, 'gather', 'plan', 'open']
const SEED = Number(process.env.CKPT_SEED ?? 7)

/** mulberry32: the same moments for the same seed. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

test(`an update that is aborted at any moment announces nothing afterwards (seed ${SEED})`, async () => {
  const random = randomOf(SEED)
  await withUpdates(async ({ updates, register, engine: start }) => {
    const engine = await start()
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 30 }
    const phases = new Map<string, number>()
    for (let round = 0; round < ROUNDS; round++) {
      const tensors = tensorsOf(8, 200_000, round)
      await register(tensors)
      const { id, done } = updates.start(NAME, request)
      // every other time during the transfer, which is short
      const inTransfer = round % 2 === 1
      if (inTransfer) await until(() => !EARLY.includes(updates.state(id).phase))
      await Bun.sleep(random() ** 2 * (inTransfer ? 40 : 400))
      const taken = updates.abort(id, 'by the test').buckets_done
      const { failure, seconds } = await outcomeOf(done)
      const { buckets_done, buckets } = updates.state(id)
      if (failure === null) {
        await requireWeights(engine, tensors)
        continue
      }
      phases.set(failure.phase!, (phases.get(failure.phase!) ?? 0) + 1)
      expect(failure).toMatchObject({ code: 'aborted', message: 'aborted: by the test' })
      expect(seconds).toBeLessThan(3)
      // progress is looked at every 100 ms, and the buckets of that time may be missing from `taken`
      expect(buckets_done).toBeLessThanOrEqual(Math.min(buckets, taken + 12))
      expect(updates.status().quarantined_bytes).toBe(0)
    }
    expect([...phases.keys()]).toContain('transfer')
    const tensors = tensorsOf(8, 200_000, 999)
    await register(tensors)
    await updates.start(NAME, request).done
    await requireWeights(engine, tensors)
    expect((await weightsOf(engine)).torn).toBe(false)
  }, SMALL_BUCKETS)
})

for (const ranks of [1, 2]) {
  test(`no list follows an abort between a copy's enqueue and its completion, ${ranks} ranks`, async () => {
    const program = join(import.meta.dir, 'testing/abort-program.ts')
    const child = Bun.spawn([process.execPath, program, String(ranks)], { stderr: 'inherit' })
    const { results, liveObjects } = JSON.parse(await new Response(child.stdout).text()) as {
      results: { lists: number; before: string[][]; after: string[][]; code: string }[]
      liveObjects: number
    }
    expect(results).toHaveLength(3)
    for (const { lists, before, after, code } of results) {
      expect(code).toBe('aborted')
      for (const seen of before) expect(seen).toEqual(['handle', ...Array(lists).fill('list')])
      // the exception that makes the worker leave, and nothing else
      for (const seen of after) expect(seen).toEqual(['error'])
    }
    expect(liveObjects).toBe(0)
  })
}

test('an abort of an update that has failed, and whose worker has not left yet, does not change why', async () => {
  await withUpdates(
    async ({ updates, register }) => {
      await register(tensorsOf(8, 200_000, 1))
      const context = new ZmqContext()
      const { id, done } = updates.start(NAME, { timeout: 30 })
      const ended = outcomeOf(done)
      const words = new TextEncoder().encode('RuntimeError: words of the worker')
      for await (const { map } of updates.events(id)) {
        if (map === undefined) continue
        const [address] = Object.values(map) as [string]
        const worker = scriptedWorker(context, address, (lists) =>
          lists === 2 ? words : undefined,
        )
        await until(() => worker.seen.includes('error'))
        expect(updates.abort(id, 'too late').state).toBe('running')
        worker.close()
        break
      }
      const { failure } = await ended
      expect(failure).toMatchObject({ code: 'engine_failed', phase: 'transfer', rank: 0 })
      expect(failure?.message).toContain('words of the worker')
      context.close()
    },
    { ...SMALL_BUCKETS, rankCount: 1, devices: 'host:1' },
  )
})
