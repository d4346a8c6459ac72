import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ErrorCode, Phase, UpdateRequest } from '@ckpt/core'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { run } from '../../../../../test/support/process.ts'
import {
  arm,
  type Bench,
  NAME,
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  weightsOf,
  withUpdates,
} from './testing/fixture.ts'

setDefaultTimeout(60_000)

const COUNT = 24
const BYTES = 60_000
const version = (seed: number) => tensorsOf(COUNT, BYTES, seed)

async function update(
  { updates }: Bench,
  engines: readonly RunningEngine[],
  request: Partial<UpdateRequest> = {},
) {
  const each = engines.length === 1 ? [[]] : engines.map((_, i) => [i])
  const targets = engines.map(({ url }, i) => ({ url, ranks: each[i]! }))
  return await outcomeOf(updates.start(NAME, { engines: targets, timeout: 20, ...request }).done)
}

/** One update through the ring, after which the engine says that it may be written directly. Nobody has asked it where. */
async function prepared(bench: Bench, options: Parameters<Bench['engine']>[0] = {}) {
  const engine = await bench.engine({ direct: true, ...options })
  await bench.register(version(1))
  const first = await update(bench, [engine], { mode: 'pipelined' })
  expect(first.failure).toBeNull()
  expect(first.report).toMatchObject({
    mode: 'pipelined',
    mode_reason: expect.not.stringContaining('direct'),
  })
  await requireWeights(engine, version(1))
  await bench.register(version(2))
  return engine
}

describe('a direct update', () => {
  test.each([1, 2, 4])(
    'of %d ranks brings every byte, and is taken without being asked for',
    (rankCount) =>
      withUpdates(
        async (bench) => {
          const engine = await prepared(bench)
          const { report, failure } = await update(bench, [engine])
          expect(failure).toBeNull()
          await requireWeights(engine, version(2))
          const bytes = Object.values(version(2)).reduce((sum, one) => sum + one.bytes.length, 0)
          expect(report).toMatchObject({
            mode: 'direct',
            mode_reason: 'the engine has told where its weights lie',
            tensors: COUNT,
            bytes,
            ring_bytes: 0,
            bucket_bytes: 0,
            engines: [{ result: 'ok', torn: false }],
          })
          const { h2d, broadcast, reload } = report!.stages
          expect([broadcast.bytes, reload.bytes]).toEqual([0, 0])
          // each rank gets what is its own
          const own = Object.values(version(2)).reduce((sum, { bytes: all }) => {
            return sum + (all.length % rankCount === 0 ? all.length : all.length * rankCount)
          }, 0)
          expect(h2d.bytes).toBe(own)
          // again, with the map that is known
          await bench.register(version(3))
          const again = await update(bench, [engine], { mode: 'direct' })
          expect(again.report).toMatchObject({
            mode: 'direct',
            mode_reason: 'asked for; the engine has told where its weights lie',
          })
          await requireWeights(engine, version(3))
        },
        { rankCount, ...SMALL_BUCKETS },
      ),
  )

  test.each([
    { each: 1, engines: 2 },
    { each: 1, engines: 4 },
    { each: 2, engines: 2 },
  ])(
    'of $engines engines with $each ranks that hold the same brings every byte over one link',
    ({ each, engines: count }) =>
      withUpdates(
        async (bench) => {
          const devices = `host:${each}`
          const started = Array.from({ length: count }, () =>
            bench.engine({ direct: true, tensorParallelSize: each, devices }),
          )
          const engines = await Promise.all(started)
          const targets = engines.map(({ url }, i) => {
            return { url, ranks: Array.from({ length: each }, (_, rank) => i * each + rank) }
          })
          for (const [seed, mode] of (['pipelined', 'auto', 'direct'] as const).entries()) {
            const tensors = tensorsOf(COUNT, 2_000_000, seed)
            await bench.register(tensors)
            const request = { engines: targets, timeout: 20, mode }
            const { report, failure } = await outcomeOf(bench.updates.start(NAME, request).done)
            expect(failure).toBeNull()
            for (const engine of engines) await requireWeights(engine, tensors)
            if (mode === 'pipelined') continue
            expect(report?.mode).toBe('direct')
            const bytes = Object.values(tensors).reduce((sum, one) => sum + one.bytes.length, 0)
            const { h2d, broadcast } = report!.stages
            expect(h2d.bytes + broadcast.bytes).toBe(count * bytes)
            // but for ends that are not worth waiting for
            expect(h2d.bytes).toBeLessThan(1.02 * bytes)
          }
        },
        // where each has one rank all are on one device
        { rankCount: each * count, ...(each === 1 ? { devices: 'host:1' } : {}) },
      ),
  )

  test('of two engines, and of one of them through the ring as asked', () =>
    withUpdates(
      async (bench) => {
        const options = { direct: true, tensorParallelSize: 1 }
        const engines = [
          await bench.engine({ ...options, devices: 'host:1' }),
          await bench.engine({ ...options, devices: 'host:1' }),
        ]
        await bench.register(version(1))
        expect((await update(bench, engines)).report).toMatchObject({ mode: 'pipelined' })
        await bench.register(version(2))
        expect((await update(bench, engines)).report).toMatchObject({ mode: 'direct' })
        for (const engine of engines) await requireWeights(engine, version(2))
        await bench.register(version(3))
        const { report } = await update(bench, engines, { mode: 'pipelined' })
        expect(report).toMatchObject({
          mode: 'pipelined',
          mode_reason: expect.not.stringContaining('direct'),
        })
        for (const engine of engines) await requireWeights(engine, version(3))
      },
      { devices: 'host:1' },
    ))

  test('takes another layout through the ring, and says why', () =>
    withUpdates(async (bench) => {
      const engine = await prepared(bench)
      await bench.register(tensorsOf(COUNT + 1, BYTES, 4))
      const forced = await update(bench, [engine], { mode: 'direct' })
      const words = "the engine's placement map has no layer.24.weight"
      expect(forced.failure).toMatchObject({
        code: 'not_supported',
        message: `the engines cannot be updated directly: ${words}`,
      })
      // nothing was changed
      await requireWeights(engine, version(1))
      const { report } = await update(bench, [engine])
      expect(report?.mode).toBe('pipelined')
      expect(report?.mode_reason).toEndWith(`; not direct: ${words}`)
      await requireWeights(engine, tensorsOf(COUNT + 1, BYTES, 4))
      // it has a map of that layout now
      await bench.register(tensorsOf(COUNT + 1, BYTES, 5))
      expect((await update(bench, [engine])).report?.mode).toBe('direct')
      await requireWeights(engine, tensorsOf(COUNT + 1, BYTES, 5))
    }))

  test('is refused where nobody can take one', () =>
    withUpdates(async (bench) => {
      await bench.register(version(1))
      const unknown = await bench.engine({ direct: true })
      const messages: (string | undefined)[] = []
      messages.push((await update(bench, [unknown], { mode: 'direct' })).failure?.message)
      const plain = await bench.engine()
      expect((await update(bench, [plain])).report?.mode_reason).not.toContain('direct')
      messages.push((await update(bench, [plain], { mode: 'direct' })).failure?.message)
      const nobody = bench.updates.start(NAME, { mode: 'direct', timeout: 5 })
      messages.push((await outcomeOf(nobody.done)).failure?.message)
      const why = 'the engines cannot be updated directly:'
      const unsaid =
        'has taken no update of this daemon with ckpt_worker yet: send one without mode direct first'
      expect(messages).toEqual([
        `${why} ${unknown.url} ${unsaid}`,
        `${why} ${plain.url} ${unsaid}`,
        `${why} no engine is contacted for rank 0`,
      ])
    }))

  test('that finds the memory moved goes through the ring, and the next one is direct again', () =>
    withUpdates(async (bench) => {
      const engine = await prepared(bench, { faults: ['moved@open:direct:once'] })
      const { report } = await update(bench, [engine])
      expect(report?.mode_reason).toContain('; not direct: ')
      await requireWeights(engine, version(2))
      await bench.register(version(3))
      expect((await update(bench, [engine])).report?.mode).toBe('direct')
      await requireWeights(engine, version(3))
    }))
})

interface Expected {
  readonly fault: string
  readonly code: ErrorCode | RegExp
  readonly phase: Phase | RegExp
  readonly words: string | RegExp
  /** null: that depends on who is heard first. */
  readonly torn: boolean | null
  readonly timeout?: number
}

const FAULTS: readonly Expected[] = [
  {
    fault: 'hang@0',
    code: /timeout|engine_failed/,
    phase: 'open',
    words: /hold still|timed out/,
    torn: null,
    timeout: 2,
  },
  { fault: 'close@1', code: /engine_/, phase: /transfer|release/, words: 'closes', torn: true },
  {
    fault: 'hang@1',
    code: /timeout|engine_failed/,
    phase: 'release',
    words: /processing|timed out/,
    torn: true,
    timeout: 2,
  },
  { fault: 'error@post', code: 'engine_failed', phase: 'release', words: 'post hook', torn: true },
  {
    fault: 'hang@post',
    code: /timeout|engine_failed/,
    phase: 'release',
    words: /processing|timed out/,
    torn: true,
    timeout: 2,
  },
]

test.each(['close@1', 'hang@1'])(
  'of two engines that take from each other one fails (%s): who has a part is torn, and the next update brings all',
  (fault) =>
    withUpdates(
      async (bench) => {
        const devices = 'host:1'
        const one = { direct: true, tensorParallelSize: 1, devices }
        const [good, bad] = [await bench.engine(one), await bench.engine(one)]
        const engines = [good, bad]
        await bench.register(tensorsOf(COUNT, 2_000_000, 1))
        expect((await update(bench, engines)).report).toMatchObject({ mode: 'pipelined' })
        await bench.register(tensorsOf(COUNT, 2_000_000, 2))
        await arm(bad, `${fault}:once`)
        const { report, failure } = await update(bench, engines, { mode: 'direct', timeout: 6 })
        expect({ report, rank: failure?.rank }).toEqual({ report: null, rank: 1 })
        const torn = bench.updates.status().engines.map((engine) => engine.torn)
        expect(torn).toContain(true)
        await bench.register(tensorsOf(COUNT, 2_000_000, 3))
        for (const mode of ['auto', 'direct'] as const) {
          expect((await update(bench, engines, { mode })).failure).toBeNull()
          for (const engine of engines) await requireWeights(engine, tensorsOf(COUNT, 2_000_000, 3))
        }
      },
      { devices: 'host:1' },
    ),
)

describe('a direct update of which one rank fails', () => {
  test.each(FAULTS)('$fault', ({ fault, code, phase, words, torn, timeout }) =>
    withUpdates(async (bench) => {
      const engine = await prepared(bench, { faults: [`${fault}:direct:once`] })
      const { failure, seconds } = await update(bench, [engine], {
        mode: 'direct',
        pause: 'abort',
        ...(timeout === undefined ? {} : { timeout }),
      })
      expect(failure?.code).toMatch(code)
      expect(failure?.phase).toMatch(phase)
      expect(failure?.message).toMatch(words)
      expect(seconds).toBeLessThan((timeout ?? 10) + 2)
      const state = bench.updates.status().engines[0]
      const engineTorn = (await weightsOf(engine)).torn
      // one that is torn is known to be, one of which nobody has said in time that it is not counts as torn
      if (engineTorn) expect(state?.torn).toBe(true)
      if (torn !== null) expect([state?.torn, engineTorn]).toEqual([torn, torn])
      // paused, or as before
      const paused = await (await fetch(`${engine.url}/is_paused`)).json()
      expect(paused).toEqual({ is_paused: state?.torn })
      // a whole update heals it
      const healed = await update(bench, [engine])
      expect(healed.failure).toBeNull()
      expect(bench.updates.status().engines[0]?.torn).toBe(false)
      await requireWeights(engine, version(2))
    }),
  )

  test.each(['error@0', 'close@0', 'http-500@open'])(
    '%s refuses before anything is changed: through the ring',
    (fault) =>
      withUpdates(async (bench) => {
        const engine = await prepared(bench, { faults: [`${fault}:direct:once`] })
        const { report } = await update(bench, [engine])
        expect(report?.mode).toBe('pipelined')
        expect(report?.mode_reason).toContain('; not direct: ')
        await requireWeights(engine, version(2))
      }),
  )
})

test('an engine that does not pause is not begun with, though its ranks were opened meanwhile', () =>
  withUpdates(async (bench) => {
    const engine = await prepared(bench, { faults: ['hang@pause:once'] })
    const waits = { mode: 'direct', pause: 'wait', pause_timeout: 0.3 } as const
    const { failure } = await update(bench, [engine], waits)
    expect(failure).toMatchObject({ code: 'engine_busy', phase: 'pause' })
    expect(bench.updates.status()).toMatchObject({
      engines: [{ torn: false }],
      quarantined_bytes: 0,
    })
    await requireWeights(engine, version(1))
    const { report } = await update(bench, [engine], { mode: 'direct', pause: 'abort' })
    expect(report?.mode).toBe('direct')
    await requireWeights(engine, version(2))
  }))

test('an engine of which one rank held still and another refused is whole, and goes on', () =>
  withUpdates(async (bench) => {
    const engine = await prepared(bench, { faults: ['error@0:direct:once'] })
    const { failure } = await update(bench, [engine], { mode: 'direct', pause: 'abort' })
    expect(failure).toMatchObject({ code: 'not_supported', phase: 'plan' })
    expect(failure?.message).toContain('it does not begin')
    expect(bench.updates.status().engines).toMatchObject([{ torn: false }])
    expect(await (await fetch(`${engine.url}/is_paused`)).json()).toEqual({ is_paused: false })
    await requireWeights(engine, version(1))
  }))

test('an abort leaves an engine torn whose workers do not all say that they are whole', () =>
  withUpdates(async (bench) => {
    for (const fault of ['hang@0', 'hang@1']) {
      const engine = await prepared(bench, { faults: [`${fault}:direct:once`] })
      const request = { engines: [{ url: engine.url, ranks: [] }], update_id: `of-${fault}` }
      const { done, id } = bench.updates.start(NAME, { ...request, mode: 'direct', timeout: 3 })
      await Bun.sleep(300)
      bench.updates.abort(id, 'enough')
      expect((await outcomeOf(done)).failure).toMatchObject({
        code: 'aborted',
        message: 'aborted: enough',
      })
      const state = bench.updates.status().engines.find(({ url }) => url === engine.url)
      expect(state?.torn).toBe(true)
      await engine.close()
    }
  }))

test('an engine of several ranks that was started again is not asked for what it may not know', () =>
  withUpdates(async (bench) => {
    const before = await prepared(bench)
    const listen = new URL(before.url).host
    await before.close()
    const engine = await bench.engine({ listen })
    const { report } = await update(bench, [engine])
    expect(report?.mode_reason).toEndWith('; not direct: the engine was started again')
    await requireWeights(engine, version(2))
  }))

test('an engine whose worker says that it is torn is, whatever it was sent', () =>
  withUpdates(
    async (bench) => {
      const torn = { ok: false, error: 'its memory', phase: 'begin', torn: true }
      using server = Bun.serve({
        port: 0,
        routes: {
          '/health': new Response(),
          '/is_paused': Response.json({ is_paused: true }),
          '/collective_rpc': { POST: () => Response.json({ results: [torn] }, { status: 200 }) },
          '/version': Response.json({ version: '0.26.0' }),
        },
        fetch: () => new Response('', { status: 404 }),
      })
      await bench.register(version(1))
      const url = `${server.url}collective_rpc`
      const { done } = bench.updates.start(NAME, { update_url: url, timeout: 10 })
      expect((await outcomeOf(done)).failure?.code).toBe('engine_failed')
      expect(bench.updates.status().engines).toMatchObject([{ torn: true }])
    },
    { rankCount: 1, devices: 'host:1' },
  ))

test.each([
  ['abort', 'aborted'],
  ['abort-kill', 'aborted'],
  ['kill', 'rank_failed'],
])(
  'copies of an update that has ended (%s) do not overwrite what a later one brings',
  async (how, code) => {
    const program = join(import.meta.dir, 'testing/unsettled-program.ts')
    const env = { CKPT_HOST_COPY_BYTES_PER_SECOND: '4000000' }
    const { stdout, stderr } = await run([process.execPath, program, how], env)
    // of a Worker that was ended what it had opened is left
    expect(stderr).toMatch(how === 'abort' ? /^$/ : /native objects are left/)
    const { openSeconds, ...said } = JSON.parse(stdout)
    expect(said).toMatchObject({
      first: 'pipelined',
      second: { code },
      third: [expect.any(String), 'ok'],
      torn: false,
      held: 'the weights of the last update',
    })
    // some three seconds of copies were on their way
    expect(openSeconds[1] - openSeconds[0]).toBeGreaterThan(1)
  },
)

test('an update goes on after one whose rank did not come back out of its copies', async () => {
  const program = join(import.meta.dir, 'testing/unsettled-program.ts')
  const faults = mkdtempSync(join(tmpdir(), 'ckpt-faults-'))
  writeFileSync(join(faults, 'hang@copied-0'), '')
  const env = { CKPT_HOST_COPY_BYTES_PER_SECOND: '4000000', CKPT_FAULT_DIR: faults }
  const { stdout, stderr } = await run([process.execPath, program, 'hang'], env)
  rmSync(faults, { recursive: true })
  // of a Worker that never ends what it had opened is left
  expect(stderr).toMatch(/native objects are left/)
  expect(JSON.parse(stdout)).toMatchObject({
    first: 'pipelined',
    second: { code: 'update_timeout', rank: 0, phase: 'transfer' },
    third: ['direct', 'ok'],
    torn: false,
    held: 'the weights of the last update',
  })
})
