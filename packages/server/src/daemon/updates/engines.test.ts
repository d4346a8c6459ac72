import { expect, setDefaultTimeout, test } from 'bun:test'
import type { RunningEngine } from '../../engines/reference/index.ts'
import {
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  withUpdates,
} from './testing/fixture.ts'
import { proxyOf } from './testing/proxy.ts'

setDefaultTimeout(60_000)

/** What tells vLLM from other servers that speak /collective_rpc. */
const VLLM = { 'GET /version': () => Response.json({ version: '0.26.0' }) }

async function isPaused(engine: RunningEngine): Promise<boolean> {
  const answer = await fetch(`${engine.url}/is_paused`)
  return ((await answer.json()) as { is_paused: boolean }).is_paused
}

test('vLLM is paused for the update and resumed afterwards, unless it was paused before', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start()
    const proxy = proxyOf(engine)
    const request = {
      update_url: `${proxy.url}/collective_rpc`,
      pause: 'wait',
      timeout: 20,
    } as const
    await updates.start(NAME, request).done
    expect(proxy.calls).toEqual([
      'GET /health',
      // of several ranks: whether they have the method
      'GET /server_info?config_format=json',
      'GET /is_paused',
      'POST /pause?mode=wait&clear_cache=true',
      'POST /collective_rpc',
      'POST /reset_prefix_cache',
      'POST /resume',
    ])
    expect(proxy.bodies.get('/collective_rpc')).toMatchObject({ method: 'update_weights_from_ipc' })
    await fetch(`${engine.url}/pause`, { method: 'POST' })
    await updates.start(NAME, request).done
    expect(await isPaused(engine)).toBe(true)
    await proxy.close()
  })
})

test('a pause that waits for ever ends at its deadline, and what we paused is resumed', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start({ faults: ['hang@pause:once'] })
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, { ...request, pause: 'wait', pause_timeout: 0.4 })
    const { failure, seconds } = await outcomeOf(done)
    expect(failure).toMatchObject({ code: 'engine_busy', phase: 'pause', rank: 0 })
    expect(seconds).toBeLessThan(3)
    expect(updates.state(id).engines).toMatchObject([{ result: 'not_contacted', torn: false }])
    expect(await isPaused(engine)).toBe(false)
    await updates.start(NAME, { ...request, pause: 'abort' }).done
  })
})

test('a torn engine is paused and marked until an update heals it', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start({ faults: ['error@3:once'] })
    const request = { update_url: `${engine.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, request)
    expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
    const [report] = updates.state(id).engines!
    expect(report).toMatchObject({ torn: true })
    expect(report).not.toHaveProperty('serving_torn')
    expect(report).not.toHaveProperty('engine_restart_needed')
    expect([updates.status().engines[0]?.torn, await isPaused(engine)]).toEqual([true, true])
    await updates.start(NAME, request).done
    expect([updates.status().engines[0]?.torn, await isPaused(engine)]).toEqual([false, false])
  }, SMALL_BUCKETS)
})

test('a torn engine that cannot be paused serves torn, and the report says so', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start({ faults: ['error@3:once'] })
    const proxy = proxyOf(engine, {
      'POST /my/own/route': (request) => {
        const body = JSON.stringify(proxy.bodies.get(new URL(request.url).pathname))
        return fetch(`${engine.url}/collective_rpc`, { method: 'POST', body })
      },
    })
    const request = { update_url: `${proxy.url}/my/own/route`, timeout: 20 }
    const { id, done } = updates.start(NAME, request)
    expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
    expect(updates.state(id).engines).toMatchObject([{ torn: true, serving_torn: true }])
    await updates.start(NAME, request).done
    const paused = updates.start(NAME, { ...request, pause: 'wait' })
    expect((await outcomeOf(paused.done)).failure?.code).toBe('not_supported')
    await proxy.close()
  }, SMALL_BUCKETS)
})

test('a tensor-parallel vLLM whose worker raised must be started again', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start({ faults: ['error@3:once'] })
    const first = proxyOf(engine, VLLM)
    const request = { update_url: `${first.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, request)
    expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
    expect(updates.state(id).engines).toMatchObject([{ torn: true, engine_restart_needed: true }])
    expect(updates.status().engines).toMatchObject([
      { torn: true, updated: false, engine_restart_needed: true },
    ])
    const before = first.calls.length
    const refused = await outcomeOf(updates.start(NAME, request).done)
    expect(refused.failure).toMatchObject({ code: 'engine_restart_needed', rank: 0 })
    expect(first.calls.slice(before)).not.toContain('POST /collective_rpc')
    await first.close()
    const second = proxyOf(engine, VLLM, first.port)
    expect((await updates.start(NAME, request).done).engines[0]).toMatchObject({ torn: false })
    const [whole] = updates.status().engines
    expect(whole).toMatchObject({ torn: false, updated: true })
    expect(whole).not.toHaveProperty('engine_restart_needed')
    await second.close()
  }, SMALL_BUCKETS)
})

test('a tensor-parallel vLLM whose workers have raised before they were given anything must be started again too', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start()
    const raises = () => new Response('Failed: no attribute', { status: 500 })
    const first = proxyOf(engine, { ...VLLM, 'POST /collective_rpc': raises })
    const request = { update_url: `${first.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, request)
    expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
    expect(updates.state(id).engines).toMatchObject([{ torn: false, engine_restart_needed: true }])
    const refused = await outcomeOf(updates.start(NAME, request).done)
    expect(refused.failure).toMatchObject({ code: 'engine_restart_needed', rank: 0 })
    await first.close()
    const second = proxyOf(engine, VLLM, first.port)
    const [report] = (await updates.start(NAME, request).done).engines
    expect(report).not.toHaveProperty('engine_restart_needed')
    await second.close()
  }, SMALL_BUCKETS)
})

test('a tensor-parallel vLLM without a worker extension is not asked for what its workers do not have', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start()
    const parallel_config = { worker_extension_cls: '', world_size: 2 }
    const info = { vllm_config: { parallel_config, weight_transfer_config: { backend: 'ipc' } } }
    const proxy = proxyOf(engine, { ...VLLM, 'GET /server_info': () => Response.json(info) })
    const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
    const { failure } = await outcomeOf(updates.start(NAME, request).done)
    expect(failure).toMatchObject({ code: 'not_supported', rank: 0, phase: 'open' })
    expect(failure?.message).toContain(
      'This vLLM has no worker extension; its own weight transfer is used for engines of one rank, and this one has 2',
    )
    expect(proxy.calls).not.toContain('POST /collective_rpc')
    expect(updates.status().engines[0]).not.toHaveProperty('engine_restart_needed')
    // with one nobody is asked again
    parallel_config.worker_extension_cls = 'ckpt_worker.WorkerExtension'
    await updates.start(NAME, request).done
    const before = proxy.calls.length
    await updates.start(NAME, request).done
    expect(proxy.calls.slice(before).join()).not.toContain('/server_info')
    await proxy.close()
  }, SMALL_BUCKETS)
})

test('a vLLM of one rank has nobody to be out of step with: torn, and the next update heals it', async () => {
  await withUpdates(
    async ({ updates, register, engine: start }) => {
      await register(tensorsOf(12, 200_000, 1))
      const engine = await start({ faults: ['error@3:once'] })
      const proxy = proxyOf(engine, VLLM)
      const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
      const { id, done } = updates.start(NAME, request)
      expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
      const [report] = updates.state(id).engines!
      expect(report).toMatchObject({ torn: true })
      expect(report).not.toHaveProperty('engine_restart_needed')
      expect((await updates.start(NAME, request).done).engines[0]).toMatchObject({ torn: false })
      await proxy.close()
    },
    { ...SMALL_BUCKETS, rankCount: 1, devices: 'host:1' },
  )
})

test('workers that answer instead of raising leave nobody out of step, and have the last word', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start({ faults: ['error@3:once'] })
    const proxy = proxyOf(engine, {
      ...VLLM,
      'POST /collective_rpc': async () => {
        const body = JSON.stringify(proxy.bodies.get('/collective_rpc'))
        const reply = await fetch(`${engine.url}/collective_rpc`, { method: 'POST', body })
        if (reply.ok) return reply
        const failed = { ok: false, error: 'told by the worker', phase: 'transfer', torn: true }
        return Response.json({ results: [{ ok: true }, failed] })
      },
    })
    const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, request)
    const { failure } = await outcomeOf(done)
    expect(failure).toMatchObject({ code: 'engine_failed', phase: 'transfer', rank: 1 })
    expect(failure?.message).toContain('told by the worker')
    const [report] = updates.state(id).engines!
    expect(report).toMatchObject({ torn: true })
    expect(report).not.toHaveProperty('engine_restart_needed')
    await updates.start(NAME, request).done
    await proxy.close()
  }, SMALL_BUCKETS)
})

for (const [route, phase] of [
  ['POST /reset_prefix_cache', 'post'],
  ['POST /resume', 'resume'],
] as const) {
  test(`an engine that never answers ${route} ends the update at its timeout`, async () => {
    await withUpdates(async ({ updates, register, engine: start }) => {
      await register(tensorsOf(8, 100_000, 1))
      const engine = await start()
      let hangs = true
      const proxy = proxyOf(engine, {
        [route]: ({ url }) =>
          hangs
            ? new Promise<Response>(() => {})
            : fetch(`${engine.url}${new URL(url).pathname}`, { method: 'POST' }),
      })
      const request = { update_url: `${proxy.url}/collective_rpc`, pause: 'wait' } as const
      const { id, done } = updates.start(NAME, { ...request, timeout: 3 })
      const { failure, seconds } = await outcomeOf(done)
      expect(failure).toMatchObject({ code: 'update_timeout', phase })
      expect(seconds).toBeLessThan(5)
      // it has the whole version all the same
      expect(updates.state(id).engines).toMatchObject([{ torn: false }])
      hangs = false
      await updates.start(NAME, { ...request, timeout: 20 }).done
      expect(await isPaused(engine)).toBe(false)
      await proxy.close()
    })
  })
}

test('a look that is never answered is made again', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start()
    let looks = 0
    const proxy = proxyOf(engine, {
      'GET /health': () =>
        ++looks === 1 ? new Promise<Response>(() => {}) : fetch(`${engine.url}/health`),
    })
    await updates.start(NAME, { update_url: `${proxy.url}/collective_rpc`, timeout: 30 }).done
    expect(looks).toBe(2)
    await proxy.close()
  })
})

for (const told of [true, false]) {
  const how = told ? 'tells when it started' : 'tells nothing'
  test(`an engine elsewhere that ${how} is refused until its restart was seen`, async () => {
    const allowed: string[] = []
    await withUpdates(
      async ({ updates, register, engine: start }) => {
        await register(tensorsOf(12, 200_000, 1))
        const engine = await start({ faults: ['error@3:once'] })
        let started = 1764000000.25
        const metrics = () =>
          `# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds ${started}\n`
        const own = {
          ...VLLM,
          ...(told ? { 'GET /metrics': () => new Response(metrics()) } : {}),
        }
        const first = proxyOf(engine, own)
        // it is this host, but the address does not say so
        const url = `http://0.0.0.0:${first.port}`
        allowed.push(url)
        const request = { update_url: `${url}/collective_rpc`, timeout: 20 }
        const { id, done } = updates.start(NAME, request)
        await outcomeOf(done)
        expect(updates.state(id).engines).toMatchObject([
          { torn: true, engine_restart_needed: true },
        ])
        for (let i = 0; i < 2; i++) {
          const before = first.calls.length
          const refused = await outcomeOf(updates.start(NAME, request).done)
          expect(refused.failure).toMatchObject({ code: 'engine_restart_needed', rank: 0 })
          expect(first.calls.slice(before)).not.toContain('POST /collective_rpc')
        }
        if (told) {
          started += 60
          await updates.start(NAME, request).done
          return first.close()
        }
        await first.close()
        const waiting = updates.start(NAME, request)
        await Bun.sleep(500)
        const second = proxyOf(engine, own, first.port)
        await waiting.done
        await second.close()
      },
      { ...SMALL_BUCKETS, allowedEngines: allowed },
    )
  })
}

test('SGLang is flushed after the update and before it goes on', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(8, 100_000, 1))
    const engine = await start({ dialect: 'D1' })
    let pending = 2
    const proxy = proxyOf(engine, {
      'GET /update_weights_from_ipc': () => new Response(null, { status: 405 }),
      'POST /flush_cache': () =>
        new Response('pending requests', { status: pending-- > 0 ? 400 : 200 }),
    })
    const request = { update_url: `${proxy.url}/update_weights_from_ipc`, timeout: 20 }
    await updates.start(NAME, { ...request, pause: 'wait', weight_version: '7' }).done
    expect(proxy.calls).toEqual([
      'GET /update_weights_from_ipc',
      'GET /ping',
      'POST /pause_generation',
      'POST /update_weights_from_ipc',
      'POST /flush_cache',
      'POST /flush_cache',
      'POST /flush_cache',
      'POST /continue_generation',
    ])
    expect(proxy.bodies.get('/pause_generation')).toEqual({ mode: 'retract' })
    expect(proxy.bodies.get('/update_weights_from_ipc')).toMatchObject({
      flush_cache: false,
      weight_version: '7',
    })
    pending = 1000
    const { engines } = await updates.start(NAME, request).done
    expect(engines[0]).toMatchObject({
      result: 'ok',
      post_hook: 'unknown',
      error: { code: 'engine_busy', phase: 'post' },
    })
    expect(updates.status().engines[0]).toMatchObject({ version: null, torn: false })
    // requests that were put back wait until it is resumed
    const before = proxy.calls.length
    await updates.start(NAME, { ...request, pause: 'wait' }).done
    const flushes = proxy.calls.slice(before).filter((call) => call === 'POST /flush_cache')
    expect(flushes).toHaveLength(10)
    await proxy.close()
  })
})

test('LMDeploy tells its devices: another set is refused before anything is sent', async () => {
  await withUpdates(async ({ options, updates, register, engine: start }) => {
    const tensors = tensorsOf(8, 100_000, 1)
    await register(tensors)
    const engine = await start({ tellDevices: true })
    const proxy = proxyOf(engine)
    // without a path the server's routes tell what it is
    const request = { update_url: proxy.url, timeout: 20 }
    await updates.start(NAME, { ...request, pause: 'wait' }).done
    expect(proxy.calls.filter((one) => one.startsWith('POST'))).toEqual([
      'POST /sleep?level=2',
      'POST /wakeup?tags=weights',
      'POST /update_weights_from_ipc',
      'POST /wakeup?tags=kv_cache',
    ])
    await requireWeights(engine, tensors)
    // it takes none while it serves
    const awake = await outcomeOf(updates.start(NAME, request).done)
    expect(awake.failure).toMatchObject({ code: 'engine_failed' })
    expect(awake.failure?.message).toContain('must be sleeping')
    const before = proxy.calls.length
    const { failure } = await outcomeOf(updates.start(NAME, { ...request, ranks: [1] }).done)
    expect(failure).toMatchObject({ code: 'engine_device_missing', phase: 'open', rank: 1 })
    const [first, second] = options.ranks.map(({ uuid }) => uuid)
    const theirs = `${proxy.url} uses device ${first}, which is not among its ranks in this update`
    expect(failure?.message).toBe(theirs)
    expect(proxy.calls.slice(before).filter((one) => one.startsWith('POST'))).toEqual([])
    const small = await start({ tellDevices: true, tensorParallelSize: 1, devices: 'host:1' })
    const foreign = await outcomeOf(
      updates.start(NAME, { update_url: `${small.url}/update_weights_from_ipc`, timeout: 20 }).done,
    )
    expect(foreign.failure).toMatchObject({ code: 'engine_device_missing', rank: 1 })
    expect(foreign.failure?.message).toContain(`does not use device ${second} of rank 1`)
    await proxy.close()
  })
})

test.each(['D1', 'D2', 'D3', 'D4'] as const)(
  "what LMDeploy's worker speaks is known by its version: %s",
  async (dialect) => {
    await withUpdates(async ({ updates, register, engine: start }) => {
      await register(tensorsOf(4, 1000, 1))
      const engine = await start({ tellDevices: true, dialect })
      const request = { update_url: engine.url, pause: 'wait', timeout: 20 } as const
      const { engines } = await updates.start(NAME, request).done
      // by the conversation alone D1 and D2 are called D3
      expect(engines).toMatchObject([{ result: 'ok', dialect }])
    })
  },
)

test.each([
  ['SGLang', { update: 405, rpc: 404 }, ['GET /ping', 'POST /update_weights_from_ipc']],
  [
    'vLLM',
    { update: 404, rpc: 405 },
    ['GET /health', 'GET /server_info?config_format=json', 'POST /collective_rpc'],
  ],
] as const)('%s is found without a path in its URL', async (_, { update, rpc }, calls) => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    const tensors = tensorsOf(4, 1000, 1)
    await register(tensors)
    const engine = await start()
    const proxy = proxyOf(engine, {
      'GET /update_weights_from_ipc': () => new Response(null, { status: update }),
      'GET /collective_rpc': () => new Response(null, { status: rpc }),
    })
    const { engines } = await updates.start(NAME, { update_url: proxy.url, timeout: 20 }).done
    await requireWeights(engine, tensors)
    expect(proxy.calls).toEqual([
      'GET /update_weights_from_ipc',
      'GET /collective_rpc',
      ...calls,
      expect.stringMatching(/cache$/),
    ])
    const isSglang = calls[0] === 'GET /ping'
    expect(engines[0]?.post_hook).toBe(isSglang ? 'unknown' : undefined)
    await proxy.close()
  })
})

test('an answer elsewhere is not followed, and a server without update routes is named', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(2, 1000, 1))
    const engine = await start()
    const redirecting = proxyOf(engine, {
      'POST /collective_rpc': () => Response.redirect(`${engine.url}/collective_rpc`, 307),
    })
    const url = `${redirecting.url}/collective_rpc`
    const followed = await outcomeOf(updates.start(NAME, { update_url: url, timeout: 5 }).done)
    expect(followed.failure).toMatchObject({ code: 'engine_failed' })
    expect(followed.failure?.message).toContain('307')
    await redirecting.close()
    const bare = Bun.serve({ port: 0, fetch: () => new Response(null, { status: 404 }) })
    const { failure } = await outcomeOf(
      updates.start(NAME, { update_url: `http://127.0.0.1:${bare.port}`, timeout: 5 }).done,
    )
    expect(failure).toMatchObject({ code: 'engine_protocol', phase: 'open', rank: 0 })
    await bare.stop(true)
  })
})
