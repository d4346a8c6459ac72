/**
 * The other direction: checkpoint-engine's own ParameterServer 0.4.2 updates engines of ours, the reference engine and one with
 * `ckpt_worker` in it. Of the server only CUDA is replaced: its buffers are shared memory of the host library.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { readEngineMessage } from '@ckpt/core'
import {
  compareWeights,
  randomTensor,
  readSafetensors,
  writeSafetensors,
} from './support/checkpoint.ts'
import { ParameterServer } from './support/parameter-server.ts'
import {
  CKPT,
  python,
  ROOT,
  type Scratch,
  type Started,
  scratch,
  start,
} from './support/process.ts'

const PYTHON = python()
if (PYTHON === null)
  console.log('skipped: no Python with torch and checkpoint-engine (see .ci/run)')

/** The least that a bucket of the server may have; one of them is larger. */
const BUCKETS = { PS_MAX_BUCKET_SIZE_GB: `${1 / 1024}` }
const REMOTE = 'RuntimeError: Failed to update weights due to remote errors'
const SCRIPT = join(ROOT, 'test/python/checkpoint_engine_worker.py')
const PACKAGE = join(ROOT, 'python/ckpt_worker')
const TORCH = ['--device', 'shm', '--server', 'checkpoint_engine']

let dir: Scratch
let seed = 0
const processes: { stop(): Promise<unknown> }[] = []

beforeAll(() => {
  dir = scratch()
})

afterAll(async () => {
  for (const one of processes) await one.stop()
  dir.remove()
})

/** Mixed dtypes, odd shapes, a tensor without elements, one larger than a bucket should be. */
function writeCheckpoint(): string[] {
  seed++
  const tensor = (name: string, dtype: string, itemBytes: number, ...shape: number[]) =>
    randomTensor(seed, name, dtype, itemBytes, ...shape)
  const file = join(dir.path, `${seed}.safetensors`)
  writeSafetensors(file, [
    tensor('embed', 'BF16', 2, 900, 1000),
    tensor('norm', 'F32', 4, 77),
    tensor('empty', 'F16', 2, 0, 5),
    tensor('scalar', 'I64', 8),
    tensor('größe', 'U8', 1, 13),
    ...Array.from({ length: 12 }, (_, i) =>
      i % 2 === 0
        ? tensor(`layers.${i}.w`, 'F32', 4, 301, 501)
        : tensor(`layers.${i}.w`, 'F8_E4M3', 1, 33, 7 + i),
    ),
  ])
  return [file]
}

async function startEngine(
  command: readonly string[],
  env: Record<string, string> = {},
): Promise<Started> {
  const engine = await start(command, /(http:\/\/\S+)/, env)
  processes.push(engine)
  return engine
}

async function startServer(uuid: string): Promise<ParameterServer> {
  const server = await ParameterServer.start(PYTHON!, 'shm', { uuid, env: BUCKETS })
  processes.push(server)
  return server
}

async function weightsOf(url: string): Promise<any> {
  return await (await fetch(`${url}/v1/weights`)).json()
}

/** What the messages are, as our own reader has them. */
function kinds(messages: readonly string[]): string[] {
  return messages.map((message) => readEngineMessage(Uint8Array.fromHex(message)).type)
}

/** One update reaches the engine, every byte, and the server's buffer has been given back. */
async function expectUpdate(server: ParameterServer, url: string): Promise<any> {
  const files = writeCheckpoint()
  const answer = await server.update({ url: `${url}/collective_rpc`, files, timeout: 30 })
  expect({ ...answer, messages: kinds(answer.messages) }).toEqual({
    ok: true,
    messages: ['handle', ...Array(4).fill('list'), 'none', 'none'],
    held: 0,
  })
  const weights = await weightsOf(url)
  expect(weights.torn).toBe(false)
  expect(compareWeights(weights.ranks, readSafetensors(files), 1)).toBe(17)
  return weights
}

/** The engine refuses the second list: the server says so, tells the worker, and has its buffer back. */
async function expectFailure(server: ParameterServer, url: string): Promise<void> {
  const files = writeCheckpoint()
  const answer = await server.update({ url: `${url}/collective_rpc`, files, timeout: 30 })
  expect({ ...answer, messages: kinds(answer.messages) }).toEqual({
    ok: false,
    error: REMOTE,
    messages: ['handle', 'list', 'list', 'error'],
    held: 0,
  })
  expect((await weightsOf(url)).torn).toBe(true)
}

describe.skipIf(PYTHON === null)("checkpoint-engine's own ParameterServer", () => {
  test('updates the reference engine', async () => {
    const listen = ['engine', '--listen', '127.0.0.1:0', '--devices', 'host']
    const engine = await startEngine([...CKPT, ...listen, '--fault', 'error@1:once'])
    const url = engine.ready[1]!
    const [rank] = (await weightsOf(url)).ranks
    const server = await startServer(rank.uuid.replace('GPU-', ''))
    await expectFailure(server, url)
    for (let update = 0; update < 2; update++) await expectUpdate(server, url)
  }, 120_000)

  test('updates an engine with ckpt_worker, which replays what it has recorded', async () => {
    const command = [PYTHON!, SCRIPT, ...TORCH, '--worker', 'ckpt_worker']
    const engine = await startEngine(command, { PYTHONPATH: PACKAGE })
    const url = engine.ready[1]!
    const arm = (fault: string) =>
      fetch(`${url}/v1/fault`, { method: 'POST', body: JSON.stringify({ fault }) })
    const server = await startServer('11111111-2222-3333-4444-555555555555')
    await arm('error@1')
    await expectFailure(server, url)
    await arm('')
    await expectUpdate(server, url)
    await expectUpdate(server, url)
    const { reloads } = await expectUpdate(server, url)
    expect(reloads).toMatchObject([{ replayed: 17, ordinary: 0 }])
  }, 120_000)
})
