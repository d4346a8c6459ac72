import { expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { UpdateEvent } from '@ckpt/core'
import { failure } from '../registry/testing/fixture.ts'
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

setDefaultTimeout(60_000)

for (const dialect of ['D1', 'D2', 'D3', 'D4'] as const) {
  test(`three versions in a row reach an engine of two ranks that speaks ${dialect}`, async () => {
    await withUpdates(async ({ updates, register, engine: start, options }) => {
      const engine = await start({ dialect })
      for (const seed of [1, 2, 3]) {
        const tensors = tensorsOf(12, 200_000, seed)
        await register(tensors, `v${seed}`)
        const { done } = updates.start(NAME, {
          update_url: `${engine.url}/collective_rpc`,
          timeout: 20,
        })
        const report = await done
        expect(report.version).toBe(`v${seed}`)
        expect(report.mode_reason === 'kept').toBe(seed > 1)
        expect(report.buckets).toBeGreaterThan(4)
        expect(report.engines).toEqual([
          {
            url: `${engine.url}/collective_rpc`,
            dialect: dialect === 'D4' ? 'D4' : 'D3',
            ranks: [0, 1],
            result: 'ok',
            torn: false,
          },
        ])
        await requireWeights(engine, tensors)
      }
      expect((await weightsOf(engine)).updates).toBe(3)
      expect(readdirSync(join(options.stateDir, 'engines'))).toEqual([])
    }, SMALL_BUCKETS)
  })
}

test('two engines of one rank each take one update, over TCP and over a Unix socket', async () => {
  await withUpdates(
    async ({ updates, register, engine: start, dir, options }) => {
      const tensors = tensorsOf(8, 100_000, 1)
      await register(tensors)
      const socket = `${dir.path}/engine.sock`
      const first = await start({ tensorParallelSize: 1, devices: 'host:1' })
      expect(options.ranks[0]!.key).toBe(`${first.keys[0]}#0`)
      await start({
        tensorParallelSize: 1,
        devices: 'host:1',
        listen: `unix:${socket}`,
      })
      // both engines have device 0: rank 1 shares it with rank 0
      const { done } = updates.start(NAME, {
        timeout: 20,
        engines: [
          { url: `${first.url}/collective_rpc`, ranks: [0] },
          { url: 'http://localhost/update_weights_from_ipc', uds: socket, ranks: [1] },
        ],
      })
      const { engines } = await done
      expect(engines.map(({ result, ranks }) => [result, ranks])).toEqual([
        ['ok', [0]],
        ['ok', [1]],
      ])
      await requireWeights(first, tensors)
      const held = await fetch('http://localhost/v1/weights', { unix: socket } as RequestInit)
      expect(await held.json()).toMatchObject({ updates: 1, torn: false })
    },
    { devices: 'host:1' },
  )
})

test('a rank without an engine acknowledges by itself', async () => {
  await withUpdates(async ({ updates, register, engine: start, options }) => {
    const tensors = tensorsOf(12, 200_000, 1)
    await register(tensors)
    const engine = await start({ tensorParallelSize: 1, devices: 'host:1' })
    const { done } = updates.start(NAME, {
      update_url: `${engine.url}/collective_rpc`,
      inference_group_ranks: [0],
      timeout: 20,
    })
    const report = await done
    expect(report.ranks).toBe(options.ranks.length)
    expect(report.engines).toHaveLength(1)
    expect(report.stages.broadcast.busy_s).toBeGreaterThan(0)
    await requireWeights(engine, tensors)
  }, SMALL_BUCKETS)
})

test('only the ranks that are asked for take part', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    const tensors = tensorsOf(4, 50_000, 1)
    await register(tensors)
    const engine = await start({ tensorParallelSize: 1, devices: 'host:1' })
    const request = { ranks: [0], update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const report = await updates.start(NAME, request).done
    expect([report.ranks, report.stages.broadcast]).toEqual([1, { busy_s: 0, bytes: 0 }])
    await requireWeights(engine, tensors)
  })
})

test('without an engine the map is published, and whoever reads it starts the workers', async () => {
  await withUpdates(async ({ updates, register, engine: start, options }) => {
    const tensors = tensorsOf(8, 100_000, 1)
    await register(tensors)
    const engine = await start()
    const { id, done } = updates.start(NAME, { timeout: 20 })
    let map: Record<string, string> = {}
    const names: string[] = []
    for await (const event of updates.events(id)) {
      if (event.event !== 'progress' && event.event !== 'phase') names.push(event.event)
      if (event.event !== 'map') continue
      map = event.map!
      expect(updates.state(id).map).toEqual(map)
      const body = { method: 'update_weights_from_ipc', args: [map], timeout: 20 }
      void fetch(`${engine.url}/collective_rpc`, { method: 'POST', body: JSON.stringify(body) })
    }
    expect(Object.keys(map)).toEqual(options.ranks.map(({ key }) => key))
    expect(names).toEqual(['map', 'done'])
    expect((await done).engines).toEqual([])
    await requireWeights(engine, tensors)
  })
})

test('events begin with the state of now and end with the outcome, also for a late reader', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start()
    const { id, done } = updates.start(NAME, {
      update_url: `${engine.url}/collective_rpc`,
      timeout: 20,
    })
    const seen: UpdateEvent[] = []
    for await (const event of updates.events(id)) seen.push(event)
    const phases = seen.filter(({ event }) => event === 'phase').map(({ phase }) => phase)
    for (const phase of ['open', 'transfer', 'release', 'post', 'resume'] as const) {
      expect(phases).toContain(phase)
    }
    expect(seen.at(-1)).toMatchObject({ event: 'done', state: 'done', report: await done })
    const late: UpdateEvent[] = []
    for await (const event of updates.events(id)) late.push(event)
    expect(late).toEqual([seen.at(-1)!])
    const { buckets, buckets_done, bytes, bytes_done } = updates.state(id)
    expect([buckets_done, bytes_done]).toEqual([buckets, bytes])
  })
})

test('a second update waits its turn, or is refused with the id of the first', async () => {
  await withUpdates(async ({ updates, registry, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start({ faults: ['hang@1:once'] })
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const first = updates.start(NAME, { ...request, timeout: 3, update_id: 'first' })
    const second = updates.start(NAME, { ...request, update_id: 'second' })
    expect(updates.state('second').state).toBe('queued')
    await until(() => updates.state('first').buckets_done > 0)
    const refused = await failure(
      () => updates.start(NAME, { ...request, if_busy: 'fail' }),
      'update_running',
    )
    expect(refused.failure.update_id).toBe('first')
    await failure(() => updates.start(NAME, { ...request, update_id: 'second' }), 'update_running')
    await failure(() => updates.start('nobody', request), 'checkpoint_not_found', 'nobody')
    await failure(() => registry.drop(NAME, { force: false }), 'checkpoint_busy')
    expect(updates.status()).toMatchObject({ running_update: 'first', queued: 1 })
    updates.abort('first', 'enough')
    const aborted = await outcomeOf(first.done)
    expect(aborted.failure).toMatchObject({ code: 'aborted', message: 'aborted: enough' })
    expect((await second.done).engines[0]!.result).toBe('ok')
    await failure(() => updates.start(NAME, { ...request, update_id: 'second' }), 'bad_request')
  }, SMALL_BUCKETS)
})

test('the wait for the turn counts, and the queue has an end', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start({ faults: ['hang@0:once'] })
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 30 }
    const first = updates.start(NAME, { ...request, update_id: 'first' })
    const hurried = updates.start(NAME, { ...request, timeout: 0.3 })
    const { failure: late, seconds } = await outcomeOf(hurried.done)
    expect(late).toMatchObject({
      code: 'update_timeout',
      message: expect.stringContaining('first'),
    })
    expect(seconds).toBeLessThan(2)
    const waiting = Array.from({ length: 16 }, () => updates.start(NAME, request))
    await failure(() => updates.start(NAME, request), 'queue_full')
    for (const { id } of waiting) expect(updates.abort(id)).toMatchObject({ state: 'failed' })
    updates.abort('first')
    expect((await outcomeOf(first.done)).failure?.code).toBe('aborted')
    await failure(() => updates.state('nobody'), 'update_not_found')
  }, SMALL_BUCKETS)
})

test('those that wait take their turns in order, and their timeouts run meanwhile', async () => {
  await withUpdates(async ({ updates, register }) => {
    await register(tensorsOf(2, 1000, 1))
    // each of them waits for an engine that is not there
    const request = { update_url: 'http://127.0.0.1:9/collective_rpc', timeout: 20 }
    const first = updates.start(NAME, { ...request, update_id: 'first' })
    const second = updates.start(NAME, { ...request, timeout: 4, update_id: 'second' })
    const third = updates.start(NAME, { ...request, update_id: 'third' })
    const late = outcomeOf(second.done)
    await Bun.sleep(3000)
    updates.abort('first')
    await outcomeOf(first.done)
    await until(() => updates.status().running_update === 'second')
    expect(updates.state('third').state).toBe('queued')
    const { failure: passed, seconds } = await late
    expect(passed).toMatchObject({ code: 'engine_unreachable', phase: 'open' })
    expect(seconds).toBeLessThan(6)
    await until(() => updates.status().running_update === 'third')
    updates.abort('third')
    await outcomeOf(third.done)
  })
})

test('of those that have ended the last hundred are remembered', async () => {
  await withUpdates(async ({ updates, register }) => {
    await register(tensorsOf(2, 1000, 1))
    const first = updates.start(NAME, { timeout: 20, update_id: 'first' })
    for (let i = 0; i < 100; i++) updates.abort(updates.start(NAME, { update_id: `u${i}` }).id)
    updates.abort('first')
    await outcomeOf(first.done)
    await until(() => updates.status().running_update === null)
    await failure(() => updates.state('first'), 'update_not_found')
    for (const id of ['u0', 'u99']) expect(updates.state(id).state).toBe('failed')
  })
})

test('a trace is there when an update has ended, of the last ten', async () => {
  await withUpdates(async ({ updates, register }) => {
    await register(tensorsOf(2, 1000, 1))
    for (let i = 0; i < 12; i++) {
      const { id, done } = updates.start(NAME, { timeout: 20, update_id: `t${i}` })
      await failure(() => updates.trace(id), 'update_not_found', 'when it has ended')
      await until(() => updates.state(id).phase === 'open')
      updates.abort(id)
      await outcomeOf(done)
      const spans = updates.trace(id).traceEvents.filter(({ ph }) => ph === 'X')
      expect(spans.map(({ name }) => name)).toContain('plan')
    }
    await until(() => updates.status().running_update === null)
    await failure(() => updates.trace('t1'), 'update_not_found', 'not kept')
    expect(updates.trace('t2').traceEvents.length).toBeGreaterThan(0)
  })
})

test('device memory too small for a second bucket gives serial, for the largest tensor a refusal', async () => {
  const tensors = {
    ...tensorsOf(4, 500_000, 2),
    // neither the first nor the last
    'layer.2.big': tensorsOf(1, 6_000_000, 1)['layer.0.weight']!,
  }
  await withUpdates(
    async ({ updates, register, engine: start }) => {
      await register(tensors)
      const engine = await start({ tensorParallelSize: 1, devices: 'host:1' })
      const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
      expect((await updates.start(NAME, request).done).mode).toBe('serial')
      await requireWeights(engine, tensors)
    },
    { rankCount: 1, devices: 'host:1', ringBytes: 2 ** 21 },
  )
  await withUpdates(
    async ({ updates, register }) => {
      await register(tensors)
      const { failure: refused } = await outcomeOf(updates.start(NAME, { timeout: 20 }).done)
      expect(refused).toMatchObject({
        code: 'tensor_too_large',
        tensor: 'layer.2.big',
        rank: 0,
        phase: 'plan',
      })
      expect(refused!.message).toContain('(6000000 bytes)')
      expect(refused!.message).toMatch(/of the \d{6,} bytes free on rank 0$/)
    },
    { rankCount: 1, devices: 'host:1', memoryFraction: 0.0001 },
  )
})
