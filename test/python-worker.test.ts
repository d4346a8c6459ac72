/** The engine's side in Python: its own tests, and whole updates from our daemon into an engine that uses it. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
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
  run,
  type Scratch,
  type Started,
  scratch,
  start,
  startHostDaemon,
} from './support/process.ts'

const PYTHON = python()
if (PYTHON === null) console.log('skipped: no Python with torch (see .ci/run)')
const PACKAGE = join(ROOT, 'python/ckpt_worker')
const TESTS = join(PACKAGE, 'tests')
const ENGINE = join(ROOT, 'test/python/checkpoint_engine_worker.py')
const TIMEOUT_MS = 120_000
const TENSORS = 41

describe.skipIf(PYTHON === null)('ckpt_worker', () => {
  const files = readdirSync(TESTS).filter((name) => /^test_.*\.py$/.test(name))

  test.each(files)(
    '%s',
    async (name) => {
      const command = [PYTHON!, '-m', 'unittest', 'discover', '-s', TESTS, '-p', name]
      const { status, stderr } = await run(command, { PYTHONPATH: PACKAGE })
      expect(stderr).toMatch(/^Ran [1-9]\d* tests? in .*\n\nOK( \(skipped=\d+\))?$/m)
      expect(status).toBe(0)
    },
    TIMEOUT_MS,
  )
})

function writeCheckpoint(dir: string, seed: number): string {
  const path = join(dir, 'model.safetensors')
  const layers = Array.from({ length: TENSORS - 1 }, (_, i) => {
    const [dtype, itemBytes] = (
      [
        ['BF16', 2],
        ['F8_E4M3', 1],
        ['F32', 4],
      ] as const
    )[i % 3]!
    return randomTensor(seed, `model.layers.${i}.w`, dtype, itemBytes, 64 + i, 33)
  })
  writeSafetensors(path, [randomTensor(seed, 'model.embed', 'BF16', 2, 4096, 512), ...layers])
  return path
}

describe.skipIf(PYTHON === null)('an engine with our worker', () => {
  let dir: Scratch
  let daemon: Started
  let socket: string

  beforeAll(async () => {
    dir = scratch()
    ;({ daemon, socket } = await startHostDaemon(dir, '--ranks', '2', '--bucket-mib', '1'))
  }, TIMEOUT_MS)

  afterAll(async () => {
    await daemon?.stop()
    dir?.remove()
  })

  const startEngine = (...more: string[]) =>
    start([PYTHON!, ENGINE, '--device', 'shm', '--worker', 'ckpt_worker', ...more], /ready (\S+)/, {
      PYTHONPATH: PACKAGE,
    })

  /** Registers a version and updates the engine with it. */
  async function update(engine: Started, seed: number) {
    const path = writeCheckpoint(dir.path, seed)
    await request(socket, 'POST', '/v1/checkpoints/model/files', { files: [path], replace: true })
    const body = { update_url: `${engine.ready[1]}/collective_rpc`, timeout: 60 }
    const answer = await request(socket, 'POST', '/v1/checkpoints/model/update', body)
    const weights: any = await (await fetch(`${engine.ready[1]}/v1/weights`)).json()
    return { answer, weights, tensors: readSafetensors([path]) }
  }

  test(
    'loads, records, then replays: every version byte for byte',
    async () => {
      const engine = await startEngine()
      try {
        // it makes its tensors in the first update, and loads into them in the second one
        for (const [seed, replayed] of [0, 0, TENSORS, TENSORS].entries()) {
          const { answer, weights, tensors } = await update(engine, seed)
          expect(answer).toMatchObject({
            status: 200,
            body: {
              engines: [
                {
                  dialect: 'D4',
                  result: 'ok',
                  torn: false,
                  reload: { replayed: 2 * replayed, ordinary: 2 * (TENSORS - replayed) },
                },
              ],
            },
          })
          expect(compareWeights(weights.ranks, tensors, 1)).toBe(2 * TENSORS)
          expect(weights.reloads).toMatchObject(
            Array(2).fill({ replayed, ordinary: TENSORS - replayed }),
          )
        }
      } finally {
        await engine.stop()
      }
    },
    TIMEOUT_MS,
  )

  test(
    'an error of the engine ends the update in its words, and the next one works',
    async () => {
      const broken = await startEngine('--fault', 'error@1')
      try {
        const { answer } = await update(broken, 1)
        expect(answer.status).toBe(502)
        expect(answer.body.error.message).toContain('the engine refuses this bucket')
      } finally {
        await broken.stop()
      }
      const engine = await startEngine()
      try {
        expect((await update(engine, 2)).answer.status).toBe(200)
      } finally {
        await engine.stop()
      }
    },
    TIMEOUT_MS,
  )
})
