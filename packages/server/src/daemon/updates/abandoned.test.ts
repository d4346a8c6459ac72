import { expect, setDefaultTimeout, test } from 'bun:test'
import { ZmqContext } from '@ckpt/cuda'
import {
  type Bench,
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  until,
  withUpdates,
} from './testing/fixture.ts'
import { type EngineProxy, proxyOf } from './testing/proxy.ts'
import { type ScriptedWorker, scriptedWorker } from './testing/scripted-worker.ts'

setDefaultTimeout(60_000)

const RPC = '/collective_rpc'

/** Addresses by rank of the request that the proxy was sent. */
function addressesOf(proxy: EngineProxy): string[] {
  const { args } = proxy.bodies.get(RPC) as { args: [Record<string, string>] }
  return Object.values(args[0]).sort((a, b) => rankOf(a) - rankOf(b))
}

function rankOf(address: string): number {
  return Number(/rank-(\d+)-/.exec(address)![1])
}

/** An engine whose first update request is answered by the test. */
async function engineOf({ engine: start }: Bench) {
  const engine = await start()
  const posted = Promise.withResolvers<void>()
  const answered = Promise.withResolvers<Response>()
  let first = true
  const proxy: EngineProxy = proxyOf(engine, {
    [`POST ${RPC}`]: () => {
      if (!first) {
        const body = JSON.stringify(proxy.bodies.get(RPC))
        return fetch(`${engine.url}${RPC}`, { method: 'POST', body })
      }
      first = false
      posted.resolve()
      return answered.promise
    },
  })
  const context = new ZmqContext()
  return {
    engine,
    proxy,
    context,
    posted: posted.promise,
    answer: (status: number) => answered.resolve(new Response('the answer', { status })),
    async close() {
      context.close()
      await proxy.close()
    },
  }
}

type Scripted = Awaited<ReturnType<typeof engineOf>>

async function requireHealing({ updates, register }: Bench, { proxy, engine }: Scripted) {
  const tensors = tensorsOf(12, 200_000, 2)
  await register(tensors)
  await updates.start(NAME, { update_url: `${proxy.url}${RPC}`, timeout: 20 }).done
  await requireWeights(engine, tensors)
}

test('a worker that connects long after its update has failed is told to raise, whatever it waits for', async () => {
  await withUpdates(async (bench) => {
    const { updates, register } = bench
    await register(tensorsOf(12, 200_000, 1))
    const scripted = await engineOf(bench)
    const { proxy, context, answer } = scripted
    const request = { update_url: `${proxy.url}${RPC}`, timeout: 1 }
    const { failure } = await outcomeOf(updates.start(NAME, request).done)
    expect(failure).toMatchObject({ code: 'update_timeout', phase: 'open' })
    await Bun.sleep(500)
    const workers = addressesOf(proxy).map((one) => scriptedWorker(context, one, () => {}))
    // the first takes the place of the handle, which a worker replies to
    await until(() => workers.every(({ seen }) => seen.length === 2))
    await Bun.sleep(300)
    for (const { seen } of workers) expect(seen).toEqual(['error', 'error'])
    for (const worker of workers) worker.close()
    answer(500)
    await requireHealing(bench, scripted)
    await scripted.close()
  }, SMALL_BUCKETS)
})

test.each(['copies', 'nccl'] as const)(
  'a worker that connects while another engine is updated is told to raise (%s)',
  (broadcast) =>
    withUpdates(
      async (bench) => {
        const { updates, register } = bench
        await register(tensorsOf(12, 200_000, 1))
        const scripted = await engineOf(bench)
        const { proxy, context, answer } = scripted
        const request = { update_url: `${proxy.url}${RPC}`, timeout: 1 }
        expect((await outcomeOf(updates.start(NAME, request).done)).failure).not.toBeNull()
        const engine = await bench.engine({ faults: ['hang@1:once'] })
        const update_url = `${engine.url}${RPC}`
        const { id, done } = updates.start(NAME, { update_url, timeout: 6 })
        const ended = outcomeOf(done)
        await until(() => updates.state(id).buckets_done === 1)
        const workers = addressesOf(proxy).map((one) => scriptedWorker(context, one, () => {}))
        await until(() => workers.every(({ seen }) => seen.length === 2))
        expect(updates.state(id).state).toBe('running')
        for (const { seen } of workers) expect(seen).toEqual(['error', 'error'])
        for (const worker of workers) worker.close()
        answer(500)
        await ended
        await scripted.close()
      },
      { ...SMALL_BUCKETS, broadcast },
    ),
)

test('an engine that answers 500 for its first rank: the worker of the other one, which comes later, is told', async () => {
  await withUpdates(async (bench) => {
    const { updates, register } = bench
    await register(tensorsOf(12, 200_000, 1))
    const scripted = await engineOf(bench)
    const { proxy, context, answer, posted } = scripted
    const ended = outcomeOf(updates.start(NAME, { update_url: `${proxy.url}${RPC}` }).done)
    await posted
    answer(500)
    expect((await ended).failure).toMatchObject({ code: 'engine_failed', phase: 'open' })
    const worker = scriptedWorker(context, addressesOf(proxy)[1]!, () => {})
    await until(() => worker.seen.length === 2)
    expect(worker.seen).toEqual(['error', 'error'])
    worker.close()
    // nor does a later update wait for it, or take it for its own
    await requireHealing(bench, scripted)
    await scripted.close()
  }, SMALL_BUCKETS)
})

for (const status of [500, 504]) {
  for (const end of ['replies', 'closes'] as const) {
    test(`the ring of a worker that is inside load_weights at a ${status} stays until it ${end}`, async () => {
      await withUpdates(async (bench) => {
        const { updates, register } = bench
        await register(tensorsOf(12, 200_000, 1))
        const scripted = await engineOf(bench)
        const { proxy, context, answer, posted } = scripted
        const request = { update_url: `${proxy.url}${RPC}`, timeout: 3 }
        const { done } = updates.start(NAME, request)
        const ended = outcomeOf(done)
        await posted
        const held = Promise.withResolvers<void>()
        const inside = Promise.withResolvers<void>()
        const hold = (lists: number) => {
          if (lists !== 2) return
          inside.resolve()
          return held.promise
        }
        const [first, second] = addressesOf(proxy) as [string, string]
        const reading = scriptedWorker(context, first, hold)
        const other: ScriptedWorker = scriptedWorker(context, second, () => {})
        await inside.promise
        other.close()
        answer(status)
        expect((await ended).failure).toMatchObject({ phase: 'transfer' })
        // of the worker that reads, and of no other
        expect(updates.status().quarantined_bytes).toBe(SMALL_BUCKETS.ringBytes)
        await Bun.sleep(1500)
        expect(updates.status().quarantined_bytes).toBe(SMALL_BUCKETS.ringBytes)
        if (end === 'closes') reading.close()
        held.resolve()
        await until(() => updates.status().quarantined_bytes === 0)
        if (end === 'replies') reading.close()
        await requireHealing(bench, scripted)
        await scripted.close()
      }, SMALL_BUCKETS)
    })
  }
}

test('without an HTTP request a ring in quarantine is freed when its worker disconnects', async () => {
  await withUpdates(
    async ({ updates, register }) => {
      await register(tensorsOf(12, 200_000, 1))
      const context = new ZmqContext()
      const { id, done } = updates.start(NAME, { timeout: 2 })
      const ended = outcomeOf(done)
      let worker: ScriptedWorker | null = null
      for await (const { map } of updates.events(id)) {
        if (map === undefined) continue
        const hang = new Promise<void>(() => {})
        const [address] = Object.values(map) as [string]
        worker = scriptedWorker(context, address, (lists) => (lists === 2 ? hang : undefined))
        break
      }
      expect((await ended).failure).toMatchObject({ code: 'update_timeout', phase: 'transfer' })
      await Bun.sleep(1500)
      expect(updates.status().quarantined_bytes).toBe(SMALL_BUCKETS.ringBytes)
      worker?.close()
      await until(() => updates.status().quarantined_bytes === 0)
      context.close()
    },
    { ...SMALL_BUCKETS, rankCount: 1, devices: 'host:1' },
  )
})
