import { expect, setDefaultTimeout, test } from 'bun:test'
import type { Dialect, ErrorCode, Phase } from '@ckpt/core'
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

interface Expected {
  readonly fault: string
  readonly dialects: readonly Dialect[]
  readonly codes: readonly ErrorCode[]
  readonly phase: Phase
  /** Of the engine's own words, or what was waited for. */
  readonly words: string | RegExp
  /** Of whom it is said, unless the engine's answer says it, which is nobody's; absent: any. */
  readonly rank?: number
  readonly torn: boolean
  /** Seconds. */
  readonly timeout?: number
  readonly open_timeout?: number
}

const ALL: readonly Dialect[] = ['D1', 'D2', 'D3', 'D4']

const EXPECTED: readonly Expected[] = [
  {
    fault: 'error@3',
    dialects: ALL,
    codes: ['engine_failed', 'engine_disconnected'],
    phase: 'transfer',
    words: 'load_weights failed at list 3',
    rank: 1,
    torn: true,
  },
  {
    fault: 'close@2',
    dialects: ['D1', 'D4'],
    codes: ['engine_failed', 'engine_disconnected'],
    phase: 'transfer',
    words: 'the socket closes at list 2',
    rank: 1,
    torn: true,
  },
  {
    fault: 'hang@2',
    dialects: ['D1', 'D4'],
    // the engine's own deadline is the same
    codes: ['update_timeout', 'engine_failed', 'engine_disconnected'],
    phase: 'transfer',
    words: /the tensor list of bucket 2|connection in bucket 2|timed out waiting for list 2/,
    rank: 1,
    torn: true,
    timeout: 1.5,
  },
  {
    fault: 'http-500@open',
    dialects: ['D4'],
    codes: ['engine_failed'],
    phase: 'open',
    words: 'injected by the fault',
    torn: false,
  },
  {
    fault: 'http-404@open',
    dialects: ['D4'],
    codes: ['engine_failed'],
    phase: 'open',
    words: '404',
    torn: false,
  },
  {
    fault: 'refuse-handle@open',
    dialects: ALL,
    codes: ['engine_failed', 'engine_disconnected'],
    phase: 'open',
    words: 'the IPC handle cannot be opened',
    rank: 1,
    torn: false,
  },
  {
    fault: 'hang@open',
    dialects: ['D4'],
    codes: ['engine_timeout'],
    phase: 'open',
    words: 'no worker of the engine has connected within 1 s',
    torn: false,
    timeout: 4,
    open_timeout: 1,
  },
  {
    fault: 'missing-device@open',
    dialects: ['D1', 'D4'],
    codes: ['engine_device_missing', 'engine_failed'],
    phase: 'open',
    words: 'rank 1',
    torn: false,
    timeout: 6,
    open_timeout: 1,
  },
  {
    fault: 'error@post',
    dialects: ALL,
    codes: ['engine_failed', 'engine_disconnected'],
    phase: 'post',
    words: 'the post hook failed',
    torn: true,
  },
  {
    fault: 'hang@post',
    dialects: ['D1', 'D4'],
    codes: ['update_timeout', 'engine_failed', 'engine_disconnected'],
    phase: 'post',
    words: 'post hook',
    rank: 1,
    torn: true,
    timeout: 1.5,
  },
]

/** The next update heals the engine, whatever the last one left. */
async function requireHealing({ updates, register }: Bench, url: string): Promise<void> {
  const tensors = tensorsOf(12, 200_000, 2)
  await register(tensors)
  const { report, failure, seconds } = await outcomeOf(
    updates.start(NAME, { update_url: url, timeout: 25 }).done,
  )
  expect(failure).toBeNull()
  // every worker and every rank was released: nothing waits for the last update's timeout
  expect(seconds).toBeLessThan(10)
  expect(report?.engines[0]).toMatchObject({ result: 'ok', torn: false })
  expect(updates.status().quarantined_bytes).toBe(0)
}

for (const expected of EXPECTED) {
  for (const dialect of expected.dialects) {
    test(`${expected.fault} of an engine that speaks ${dialect}`, async () => {
      await withUpdates(async (bench) => {
        const { updates, register } = bench
        await register(tensorsOf(12, 200_000, 1))
        const engine = await bench.engine({ dialect, faults: [`${expected.fault}:once`] })
        const url = `${engine.url}/collective_rpc`
        // the failed worker of D1 says nothing, so the other one waits until the deadline
        const { timeout = dialect === 'D1' ? 2 : 20, open_timeout } = expected
        const { id, done } = updates.start(NAME, { update_url: url, timeout, open_timeout })
        const { failure, seconds } = await outcomeOf(done)
        expect(seconds).toBeLessThan(timeout + 2)
        // who does not hang is released long before the timeout
        if (timeout === 20) expect(seconds).toBeLessThan(10)
        // D1 to D3 run their post hook before they reply to the first None
        const phases = expected.phase === 'post' ? ['post', 'release'] : [expected.phase]
        expect(phases).toContain(failure?.phase as string)
        const codes = dialect === 'D1' ? [...expected.codes, 'update_timeout'] : expected.codes
        expect(codes).toContain(failure?.code as ErrorCode)
        expect(failure?.rank).toBeNumber()
        const { rank } = expected
        if (rank !== undefined && !failure?.message.startsWith('the engine answered')) {
          expect(failure?.rank).toBe(rank)
        }
        // a pickled exception is opaque, and the worker then raises what we tell it
        const opaque = dialect === 'D2' && failure?.phase === 'transfer'
        expect(failure?.message).toMatch(opaque ? 'opaque bytes' : expected.words)
        const state = updates.state(id)
        expect(state).toMatchObject({ state: 'failed', error: failure! })
        expect(state.engines?.[0]).toMatchObject({ result: 'failed', torn: expected.torn })
        expect(updates.status().engines[0]?.torn).toBe(expected.torn)
        await requireHealing(bench, url)
        await requireWeights(engine, tensorsOf(12, 200_000, 2))
      }, SMALL_BUCKETS)
    })
  }
}

test('a failure in one engine ends the other one too, which says so in the words of checkpoint-engine', async () => {
  await withUpdates(
    async (bench) => {
      const { updates, register } = bench
      await register(tensorsOf(12, 200_000, 1))
      const one = { tensorParallelSize: 1, devices: 'host:1' }
      const good = await bench.engine(one)
      const bad = await bench.engine({ ...one, faults: ['error@3:once'] })
      const engines = [
        { url: `${good.url}/collective_rpc`, ranks: [0] },
        { url: `${bad.url}/collective_rpc`, ranks: [1] },
      ]
      const { id, done } = updates.start(NAME, { engines, timeout: 20 })
      const { failure } = await outcomeOf(done)
      expect(failure).toMatchObject({ rank: 1, phase: 'transfer' })
      const [first, second] = updates.state(id).engines!
      expect(first).toMatchObject({ result: 'failed', torn: true })
      expect(first!.error!.message).toContain('Some workers failed to update weights')
      expect(second!.error).toEqual(failure!)
      const tensors = tensorsOf(12, 200_000, 2)
      await register(tensors)
      await updates.start(NAME, { engines, timeout: 20 }).done
      for (const engine of [good, bad]) await requireWeights(engine, tensors)
    },
    { ...SMALL_BUCKETS, devices: 'host:1' },
  )
})

test('an engine that is not there, that has gone, or whose server hangs', async () => {
  await withUpdates(async ({ updates, register, engine: start }) => {
    await register(tensorsOf(4, 100_000, 1))
    const gone = await start()
    await gone.close()
    const request = { update_url: `${gone.url}/collective_rpc`, timeout: 2, open_timeout: 0.5 }
    const missing = await outcomeOf(updates.start(NAME, request).done)
    expect(missing.failure).toMatchObject({ code: 'engine_unreachable', rank: 0, phase: 'open' })
    expect(missing.failure!.message).toContain('ECONNREFUSED')
    expect(missing.seconds).toBeLessThan(2)
    // the update has less time than an engine may take to become ready
    const late = { update_url: `${gone.url}/collective_rpc`, timeout: 1 }
    const impatient = await outcomeOf(updates.start(NAME, late).done)
    expect(impatient.failure).toMatchObject({ code: 'engine_unreachable', rank: 0, phase: 'open' })
    expect(impatient.failure!.message).toContain('ECONNREFUSED')
    expect(impatient.seconds).toBeLessThan(3)
    const silent = Bun.serve({
      port: 0,
      idleTimeout: 0,
      fetch: () => new Promise<Response>(() => {}),
    })
    try {
      const url = `http://127.0.0.1:${silent.port}/collective_rpc`
      const hung = await outcomeOf(updates.start(NAME, { update_url: url, timeout: 1 }).done)
      expect(hung.failure?.phase).toBe('open')
      expect(hung.seconds).toBeLessThan(3)
    } finally {
      await silent.stop(true)
    }
  })
})
