/** Who paused an engine, and who resumes it, when something fails on the way. */
import { expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { NAME, outcomeOf, SMALL_BUCKETS, tensorsOf, withUpdates } from './testing/fixture.ts'
import { proxyOf } from './testing/proxy.ts'

setDefaultTimeout(60_000)

async function isPaused(engine: RunningEngine): Promise<boolean> {
  const answer = await fetch(`${engine.url}/is_paused`)
  return ((await answer.json()) as { is_paused: boolean }).is_paused
}

const never = () => new Promise<Response>(() => {})

test('a pause is journalled before it is posted, and forgotten when the engine was resumed', async () => {
  await withUpdates(async ({ updates, register, engine: start, options }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start()
    const journal = () => JSON.parse(readFileSync(join(options.stateDir, 'journal.json'), 'utf8'))
    let before: unknown
    const proxy = proxyOf(engine, {
      'POST /pause': () => {
        before = journal()
        return fetch(`${engine.url}/pause?mode=wait`, { method: 'POST' })
      },
    })
    const url = `${proxy.url}/collective_rpc`
    await updates.start(NAME, { update_url: url, pause: 'wait', timeout: 20 }).done
    expect(before).toMatchObject({ engines: [{ url, update_id: null, paused: true }] })
    expect(journal().engines).toEqual([])
    await proxy.close()
  })
})

test('a torn engine that we had paused stays ours when it does not say whether it is paused', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(12, 200_000, 1))
    const engine = await start({ faults: ['error@3:once'] })
    let asked = 0
    const proxy = proxyOf(engine, {
      'GET /is_paused': () => (asked++ === 1 ? never() : fetch(`${engine.url}/is_paused`)),
    })
    const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, { ...request, pause: 'wait' })
    expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
    expect(asked).toBe(2)
    const [report] = updates.state(id).engines!
    expect(report).toMatchObject({ torn: true })
    expect(report).not.toHaveProperty('serving_torn')
    expect(await isPaused(engine)).toBe(true)
    await updates.start(NAME, { ...request, pause: 'wait' }).done
    expect(await isPaused(engine)).toBe(false)
    await proxy.close()
  }, SMALL_BUCKETS)
})

test('a resume that fails is owed until one succeeds', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start()
    let refusals = 2
    const proxy = proxyOf(engine, {
      'POST /resume': () =>
        refusals-- > 0
          ? new Response('not now', { status: 500 })
          : fetch(`${engine.url}/resume`, { method: 'POST' }),
    })
    const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
    const { id, done } = updates.start(NAME, { ...request, pause: 'wait' })
    expect((await outcomeOf(done)).failure).toMatchObject({
      code: 'engine_failed',
      phase: 'resume',
    })
    expect(updates.state(id).engines).toMatchObject([{ result: 'ok', torn: false }])
    expect([refusals, await isPaused(engine)]).toEqual([0, true])
    await updates.start(NAME, { ...request, pause: 'wait' }).done
    expect(await isPaused(engine)).toBe(false)
    await proxy.close()
  })
})

test('an engine that an operator has paused is not resumed when it was too slow to say so', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start()
    await fetch(`${engine.url}/pause`, { method: 'POST' })
    const proxy = proxyOf(engine, { 'GET /is_paused': never })
    const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
    const { done } = updates.start(NAME, { ...request, pause: 'wait', pause_timeout: 0.3 })
    expect((await outcomeOf(done)).failure).toMatchObject({ code: 'engine_busy', phase: 'pause' })
    expect(proxy.calls).not.toContain('POST /resume')
    expect(await isPaused(engine)).toBe(true)
    await proxy.close()
  })
})

test('an LMDeploy that an operator has put to sleep stays asleep', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start({ tellDevices: true })
    const proxy = proxyOf(engine)
    const headers = { 'content-type': 'application/json' }
    await fetch(`${engine.url}/sleep?level=1`, { method: 'POST', headers })
    await updates.start(NAME, { update_url: proxy.url, timeout: 20, pause: 'wait' }).done
    expect(proxy.calls.filter((one) => one.startsWith('POST'))).toEqual([
      'POST /wakeup?tags=weights',
      'POST /update_weights_from_ipc',
    ])
    expect(await isPaused(engine)).toBe(true)
    await proxy.close()
  })
})

test('an LMDeploy that has given its weights up for an update that fails does not serve without them', async () => {
  await withUpdates(async ({ updates, register, engine: start, options }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start({ tellDevices: true })
    const journal = () => JSON.parse(readFileSync(join(options.stateDir, 'journal.json'), 'utf8'))
    let before: unknown
    let refuses = true
    const path = '/update_weights_from_ipc'
    const proxy = proxyOf(engine, {
      'POST /sleep': (request) => {
        before = journal()
        return fetch(`${engine.url}/sleep?level=2`, { method: 'POST', headers: request.headers })
      },
      [`POST ${path}`]: () => {
        if (refuses) return new Response('no', { status: 400 })
        const [headers, body] = [
          { 'content-type': 'application/json' },
          JSON.stringify(proxy.bodies.get(path)),
        ]
        return fetch(`${engine.url}${path}`, { method: 'POST', headers, body })
      },
    })
    const request = { update_url: proxy.url, timeout: 20, pause: 'wait' } as const
    const { id, done } = updates.start(NAME, request)
    expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
    expect(before).toMatchObject({ engines: [{ update_id: id, paused: true }] })
    expect(updates.state(id).engines).toMatchObject([{ torn: true }])
    expect(proxy.calls).not.toContain('POST /wakeup?tags=kv_cache')
    expect(await isPaused(engine)).toBe(true)
    refuses = false
    await updates.start(NAME, request).done
    expect(updates.status().engines).toMatchObject([{ torn: false }])
    expect(await isPaused(engine)).toBe(false)
    await proxy.close()
  })
})

test('an LMDeploy keeps its weights where nobody can write down that it has given them up', async () => {
  await withUpdates(async ({ updates, register, engine: start, options }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start({ tellDevices: true })
    const proxy = proxyOf(engine)
    const path = join(options.stateDir, 'journal.json')
    rmSync(path, { force: true })
    mkdirSync(join(path, 'in the way'), { recursive: true })
    const { id, done } = updates.start(NAME, { update_url: proxy.url, timeout: 20, pause: 'wait' })
    expect((await outcomeOf(done)).failure?.phase).toBe('pause')
    expect(updates.state(id).engines).toMatchObject([{ torn: false }])
    expect(proxy.calls.filter((one) => one.startsWith('POST'))).toEqual([])
    rmSync(path, { recursive: true })
    await updates.start(NAME, { update_url: proxy.url, timeout: 20, pause: 'wait' }).done
    await proxy.close()
  })
})

test('an engine that refuses to be paused is owed nothing, and has its weights', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start({ tellDevices: true })
    const proxy = proxyOf(engine, { 'POST /sleep': () => new Response('no', { status: 403 }) })
    const { id, done } = updates.start(NAME, { update_url: proxy.url, timeout: 20, pause: 'wait' })
    expect((await outcomeOf(done)).failure).toMatchObject({ code: 'engine_failed', phase: 'pause' })
    expect(updates.state(id).engines).toMatchObject([{ torn: false }])
    expect(proxy.calls.filter((one) => one.includes('wakeup'))).toEqual([])
    await proxy.close()
  })
})

test('a pause that comes after the resume of its update is undone', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(4, 100_000, 1))
    const engine = await start()
    const resumed = Promise.withResolvers<void>()
    const again = Promise.withResolvers<void>()
    let resumes = 0
    const proxy = proxyOf(engine, {
      'POST /pause': async () => {
        await resumed.promise
        await Bun.sleep(100)
        return fetch(`${engine.url}/pause?mode=wait`, { method: 'POST' })
      },
      'POST /resume': async () => {
        const answer = await fetch(`${engine.url}/resume`, { method: 'POST' })
        ;[resumed, again][resumes++]?.resolve()
        return answer
      },
    })
    const request = { update_url: `${proxy.url}/collective_rpc`, timeout: 20 }
    const { done } = updates.start(NAME, { ...request, pause: 'wait', pause_timeout: 0.3 })
    expect((await outcomeOf(done)).failure).toMatchObject({ code: 'engine_busy', phase: 'pause' })
    // the next one does not take it for an operator's, and is not resumed by what is left of this one
    const next = updates.start(NAME, { ...request, pause: 'wait' })
    await again.promise
    expect(await isPaused(engine)).toBe(false)
    await next.done
    const asked = proxy.calls.filter((one) => /pause|resume/.test(one))
    expect(asked.map((one) => one.split('?')[0])).toEqual([
      'GET /is_paused',
      'POST /pause',
      'POST /resume',
      'POST /resume',
      'GET /is_paused',
      'POST /pause',
      'POST /resume',
    ])
    expect(await isPaused(engine)).toBe(false)
    await proxy.close()
  })
})

test('an engine that took the whole version is healed and goes on though another one failed', async () => {
  await withUpdates(
    async ({ updates, register, engine: start }) => {
      const one = { tensorParallelSize: 1, devices: 'host:1' }
      const good = await start({ ...one, faults: ['error@3:once'] })
      const bad = await start({ ...one, faults: ['hang@post:once'] })
      const targets = [
        { url: `${good.url}/collective_rpc`, ranks: [0] },
        { url: `${bad.url}/collective_rpc`, ranks: [1] },
      ]
      await register(tensorsOf(12, 200_000, 1), 'v1')
      const first = updates.start(NAME, { engines: [targets[0]!], ranks: [0], timeout: 20 })
      await outcomeOf(first.done)
      expect(updates.status().engines[0]).toMatchObject({ torn: true, version: null })
      expect(await isPaused(good)).toBe(true)
      const { id, done } = updates.start(NAME, { engines: targets, pause: 'wait', timeout: 4 })
      expect((await outcomeOf(done)).failure).toMatchObject({ rank: 1 })
      expect(updates.state(id).engines).toMatchObject([
        { result: 'ok', torn: false },
        { result: 'failed', torn: true },
      ])
      expect(updates.status().engines).toMatchObject([
        { torn: false, version: 'v1' },
        { torn: true, version: null },
      ])
      expect([await isPaused(good), await isPaused(bad)]).toEqual([false, true])
    },
    { ...SMALL_BUCKETS, devices: 'host:1' },
  )
})
