/**
 * The real workers of four versions of checkpoint-engine, one of each dialect, take updates from our daemon, and fail in each
 * way that a worker can, in one of the two ranks of an engine. Nothing tells the daemon which version it talks to.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  writeSafetensors,
} from './support/checkpoint.ts'
import {
  python,
  ROOT,
  request,
  type Scratch,
  type Started,
  scratch,
  start,
  startHostDaemon,
} from './support/process.ts'

const WORKER = join(ROOT, 'test/python/checkpoint_engine_worker.py')
const PYTHON = python()
const TENSORS = 6
const OPAQUE = 'opaque bytes'
const REFUSED = 'the engine refuses this bucket'

interface Version {
  readonly version: string
  /** Dialect that the daemon takes it for after an update, and once a worker has replied an error. */
  readonly told: { readonly success: string; readonly error: string }
  /** What it says of a list that is refused. */
  readonly error: { readonly code: string; readonly words: string }
  /** And of a ring that cannot be mapped. */
  readonly handle: { readonly code: string; readonly words: string }
}

const UNMAPPED = 'the ring cannot be mapped'
/** What each dialect can tell: the table in docs/engines.md. */
const VERSIONS: readonly Version[] = [
  {
    version: '0.1.2',
    told: { success: 'D3', error: 'D3' },
    error: {
      code: 'engine_disconnected',
      words: `in bucket 2; the engine answered 500: ValueError: ${REFUSED}`,
    },
    handle: {
      code: 'engine_disconnected',
      words: `while it mapped the ring; the engine answered 500: RuntimeError: ${UNMAPPED}`,
    },
  },
  {
    version: '0.2.1',
    told: { success: 'D3', error: 'D2' },
    error: { code: 'engine_failed', words: OPAQUE },
    handle: { code: 'engine_failed', words: OPAQUE },
  },
  {
    version: '0.3.4',
    told: { success: 'D3', error: 'D3' },
    error: { code: 'engine_failed', words: `ValueError: ${REFUSED}` },
    handle: { code: 'engine_failed', words: `RuntimeError: ${UNMAPPED}` },
  },
  {
    version: '0.4.2',
    told: { success: 'D4', error: 'D4' },
    error: { code: 'engine_failed', words: `ValueError: ${REFUSED}` },
    handle: { code: 'engine_failed', words: `RuntimeError: ${UNMAPPED}` },
  },
]

/** Where `.ci/run` has put a version; null: it is the one of the Python itself. */
function packageOf(version: string): string | null {
  return version === '0.4.2' ? null : join(ROOT, `.venv/checkpoint-engine-${version}`)
}

function isMissing(version: string): boolean {
  const found = packageOf(version)
  if (PYTHON !== null && (found === null || existsSync(found))) return false
  console.log(`skipped: no Python with torch and checkpoint-engine ${version} (see .ci/run)`)
  return true
}

let dir: Scratch
let daemon: Started | null = null
let socket: string
let seed = 0

beforeAll(async () => {
  dir = scratch()
  if (PYTHON !== null) ({ daemon, socket } = await startHostDaemon(dir, '--ranks', '2'))
}, 60_000)

afterAll(async () => {
  await daemon?.stop()
  dir.remove()
})

/** A checkpoint of several lists, with other contents than any before. */
async function register(): Promise<string> {
  seed++
  const file = join(dir.path, `${seed}.safetensors`)
  const tensors = Array.from({ length: TENSORS }, (_, i) => {
    const [dtype, itemBytes] = i % 2 === 0 ? (['BF16', 2] as const) : (['F32', 4] as const)
    return randomTensor(seed, `layers.${i}.weight`, dtype, itemBytes, 300, 700 + i)
  })
  writeSafetensors(file, tensors)
  const body = { files: [file], replace: true }
  const { status } = await request(socket, 'POST', '/v1/checkpoints/versions/files', body)
  expect(status).toBe(200)
  return file
}

/** An engine of two ranks with this version's worker in each, and our daemon's view of it. */
class Engine {
  readonly #worker: Started

  constructor(worker: Started) {
    this.#worker = worker
  }

  static async start(version: string): Promise<Engine> {
    const found = packageOf(version)
    const env: Record<string, string> = found === null ? {} : { PYTHONPATH: found }
    return new Engine(await start([PYTHON!, WORKER, '--device', 'shm'], /ready (\S+)/, env))
  }

  get url(): string {
    return this.#worker.ready[1]!
  }

  async arm(...faults: string[]): Promise<void> {
    const init = { method: 'POST', body: JSON.stringify({ faults }) }
    expect((await fetch(`${this.url}/v1/faults`, init)).status).toBe(200)
  }

  async update(timeout: number) {
    const body = { update_url: `${this.url}/collective_rpc`, timeout }
    const startMs = performance.now()
    const answer = await request(socket, 'POST', '/v1/checkpoints/versions/update', body)
    return { ...answer, seconds: (performance.now() - startMs) / 1000 }
  }

  async status() {
    const { body } = await request(socket, 'GET', '/v1/status')
    const { dialect, torn } = body.engines.find((one: any) => one.url.startsWith(this.url))
    return { dialect, torn, quarantinedBytes: body.memory.quarantined_bytes }
  }

  /** An update reaches both ranks, every byte. */
  async expectUpdate(dialect: string): Promise<void> {
    const file = await register()
    const { status, body } = await this.update(30)
    expect({ status, error: body.error, engines: body.engines }).toMatchObject({
      status: 200,
      engines: [{ dialect, result: 'ok', torn: false }],
    })
    const weights: any = await (await fetch(`${this.url}/v1/weights`)).json()
    expect(compareWeights(weights.ranks, readSafetensors([file]), 1)).toBe(2 * TENSORS)
    expect(await this.status()).toEqual({ dialect, torn: false, quarantinedBytes: 0 })
  }

  stop(): Promise<number> {
    return this.#worker.stop()
  }
}

for (const { version, told, error, handle } of VERSIONS) {
  describe.skipIf(isMissing(version))(`checkpoint-engine ${version}`, () => {
    let engine: Engine

    beforeAll(async () => {
      engine = await Engine.start(version)
    }, 60_000)

    afterAll(async () => {
      await engine?.stop()
    })

    const failed = async (fault: string, timeout: number) => {
      await register()
      await engine.arm(fault)
      const { body, seconds } = await engine.update(timeout)
      return { failure: body.error, seconds, status: await engine.status() }
    }

    test('takes an update', () => engine.expectUpdate(told.success), 60_000)

    test.each([
      {
        what: 'a ring that it cannot map',
        fault: 'handle#1',
        fails: { code: handle.code, phase: 'open', rank: 1 },
        words: handle.words,
        torn: false,
      },
      {
        what: 'an error in a bucket',
        fault: 'error@2#1',
        fails: { code: error.code, phase: 'transfer', rank: 1 },
        words: error.words,
        torn: true,
      },
      {
        what: 'a post hook that fails: only the answer of the engine tells, and not in which rank',
        fault: 'post#1',
        fails: { code: 'engine_failed' },
        words: 'the engine answered 500: RuntimeError: the post hook failed',
        torn: true,
      },
    ])(
      '$what',
      async ({ fault, fails, words, torn }) => {
        const { failure, seconds, status } = await failed(fault, 20)
        expect(failure).toMatchObject(fails)
        expect(failure.message).toContain(words)
        expect(seconds).toBeLessThan(10)
        expect(status).toEqual({ dialect: told.error, torn, quarantinedBytes: 0 })
        await engine.arm()
        await engine.expectUpdate(told.error)
      },
      60_000,
    )

    test('a hang ends the update at its timeout; its ring is kept until it is over', async () => {
      const timeout = 3
      const { failure, seconds, status } = await failed('hang@2#1', timeout)
      expect(failure).toMatchObject({ code: 'update_timeout', phase: 'transfer', rank: 1 })
      expect(failure.message).toContain('has not replied to the tensor list of bucket 2')
      // the two seconds that every update has to end, and one for two busy processors
      expect(seconds).toBeLessThan(timeout + 2 + 1)
      expect(status).toMatchObject({ dialect: told.error, torn: true })
      expect(status.quarantinedBytes).toBeGreaterThan(0)
      await engine.arm()
      await engine.expectUpdate(told.error)
    }, 60_000)
  })
}
