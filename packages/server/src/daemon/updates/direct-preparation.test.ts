import { expect, setDefaultTimeout, test } from 'bun:test'
import type { UpdateRequest } from '@ckpt/core'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { failure } from '../registry/testing/fixture.ts'
import {
  type Bench,
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  withUpdates,
} from './testing/fixture.ts'
import { type EngineProxy, proxyOf } from './testing/proxy.ts'

setDefaultTimeout(60_000)

const RPC = '/collective_rpc'
const version = (seed: number) => tensorsOf(8, 60_000, seed)

function start({ updates }: Bench, { url }: RunningEngine, request: Partial<UpdateRequest> = {}) {
  return updates.start(NAME, { engines: [{ url, ranks: [] }], timeout: 20, ...request })
}

/** The map that was told, of all ranks, or null. */
async function digests({ updates }: Bench, { url }: RunningEngine): Promise<string[] | null> {
  try {
    return (await updates.engineMap({ url })).ranks.map(({ digest }) => digest)
  } catch {
    return null
  }
}

test.each([1, 4])(
  'the first update of %d ranks has the engine say where the next belongs',
  (rankCount) =>
    withUpdates(
      async (bench) => {
        const engine = await bench.engine({ direct: true })
        await bench.register(version(1))
        const { done, id } = start(bench, engine, { pause: 'abort' })
        const phases: unknown[] = []
        for await (const { event, phase } of bench.updates.events(id)) {
          if (event === 'phase') phases.push(phase)
        }
        const { report } = await outcomeOf(done)
        expect(report).toMatchObject({
          mode: 'pipelined',
          engines: [{ result: 'ok', torn: false }],
        })
        await requireWeights(engine, version(1))
        const told = await digests(bench, engine)
        expect(told).toHaveLength(rankCount)
        // before the engine goes on
        expect(phases.slice(-3)).toEqual(['post', 'plan', 'resume'])
        await bench.register(version(2))
        expect((await outcomeOf(start(bench, engine).done)).report?.mode).toBe('direct')
        expect(await digests(bench, engine)).toEqual(told)
        await requireWeights(engine, version(2))
      },
      { rankCount, ...SMALL_BUCKETS },
    ),
)

test('nothing is asked of an engine that was updated as it was told to be, or that does not know', () =>
  withUpdates(async (bench) => {
    await bench.register(version(1))
    for (const [direct, mode] of [
      [true, 'pipelined'],
      [true, 'serial'],
      [false, 'auto'],
    ] as const) {
      const engine = await bench.engine({ direct })
      const { report } = await outcomeOf(start(bench, engine, { mode }).done)
      expect(report?.engines).toMatchObject([{ result: 'ok' }])
      expect(await digests(bench, engine)).toBeNull()
      await engine.close()
    }
  }))

test.each([
  ['http-500@open', 20],
  ['moved@open', 20],
  // the engine answers when it has timed out itself
  ['hang@open', 9],
])('what goes wrong there (%s) is no failure of the update, nor of the next', (fault, timeout) =>
  withUpdates(async (bench) => {
    const engine = await bench.engine({ direct: true, faults: [`${fault}:direct:once`] })
    for (const [seed, mode] of [
      [1, 'pipelined'],
      [2, 'direct'],
    ] as const) {
      await bench.register(version(seed))
      const request = { pause: 'abort', timeout } as const
      const { report, failure: why } = await outcomeOf(start(bench, engine, request).done)
      expect(why).toBeNull()
      expect(report).toMatchObject({ mode, engines: [{ result: 'ok', torn: false }] })
      await requireWeights(engine, version(seed))
      expect(await (await fetch(`${engine.url}/is_paused`)).json()).toEqual({ is_paused: false })
    }
  }),
)

test('it takes no more than half of the time that is left', () =>
  withUpdates(async (bench) => {
    const engine = await bench.engine({ direct: true, faults: ['hang@open:direct'] })
    await bench.register(version(1))
    const { failure: why, seconds } = await outcomeOf(start(bench, engine, { timeout: 9 }).done)
    expect(why).toBeNull()
    expect(seconds).toBeLessThan(6)
  }))

/** Whether a direct request is what the engine was posted last. */
function wasAsked({ bodies }: EngineProxy): boolean {
  return (bodies.get(RPC) as { method: string }).method === 'ckpt_direct'
}

test('an abort ends it before the engine is asked, and the next update does not wait', () =>
  withUpdates(async (bench) => {
    const engine = await bench.engine({ direct: true })
    const proxy = proxyOf(engine)
    try {
      await bench.register(version(1))
      const { done, id } = start(bench, { ...engine, url: proxy.url })
      const phases: unknown[] = []
      for await (const { event, phase } of bench.updates.events(id)) {
        if (event === 'phase') phases.push(phase)
        if (phase === 'plan' && phases.includes('post')) break
      }
      bench.updates.abort(id, 'enough')
      await failure(() => done, 'aborted', 'enough')
      await Bun.sleep(200)
      expect(wasAsked(proxy)).toBe(false)
      await bench.register(version(2))
      const next = await outcomeOf(start(bench, { ...engine, url: proxy.url }).done)
      expect(next.failure).toBeNull()
      expect(next.seconds).toBeLessThan(3)
      await requireWeights(engine, version(2))
    } finally {
      await proxy.close()
    }
  }))

test.each([true, false])(
  'an engine that it leaves out of step is to be started again; it resumes: %p',
  (resumes) =>
    withUpdates(async (bench) => {
      const engine = await bench.engine({ direct: true })
      const proxy: EngineProxy = proxyOf(engine, {
        [`POST ${RPC}`]: () =>
          wasAsked(proxy)
            ? new Response('no such method', { status: 500 })
            : fetch(`${engine.url}${RPC}`, {
                method: 'POST',
                body: JSON.stringify(proxy.bodies.get(RPC)),
              }),
        'POST /resume': () =>
          resumes
            ? fetch(`${engine.url}/resume`, { method: 'POST' })
            : new Response('', { status: 500 }),
        'GET /version': () => Response.json({ version: '0.26.0' }),
      })
      try {
        await bench.register(version(1))
        const there = { ...engine, url: proxy.url }
        const { report, failure: why } = await outcomeOf(
          start(bench, there, { pause: 'abort' }).done,
        )
        expect(wasAsked(proxy)).toBe(true)
        if (resumes) expect(report).toMatchObject({ engines: [{ result: 'ok', torn: false }] })
        else expect(why?.phase).toBe('resume')
        expect(bench.updates.status().engines).toMatchObject([
          { torn: false, engine_restart_needed: true },
        ])
        await requireWeights(engine, version(1))
        const next = await outcomeOf(start(bench, there).done)
        expect(next.failure?.code).toBe('engine_restart_needed')
      } finally {
        await proxy.close()
      }
    }),
)
