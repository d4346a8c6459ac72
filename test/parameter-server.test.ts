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
import { CKPT, python, ROOT, type Scratch, scratch, start } from './support/process.ts'

const PYTHON = python()
if (PYTHON === null)
  console.log('skipped: no Python with torch and checkpoint-engine (see .ci/run)')

/** The least that a bucket of the server may have; one of them is larger. */
const BUCKETS = { PS_MAX_BUCKET_SIZE_GB: `${1 / 1024}` }
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
): Promise<string> {
  const engine = await start(command, /(http:\/\/\S+)/, env)
  processes.push(engine)
  return engine.ready[1]!
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
    device_bytes: 0,
  })
  const weights = await weightsOf(url)
  expect(weights.torn).toBe(false)
  expect(compareWeights(weights.ranks, readSafetensors(files), 1)).toBe(17)
  return weights
}

/**
 * The engine refuses a list. The server says so, and tells the worker; but it does not look at the reply to the last list, nor at
 * the engine's answer, and takes that update for a good one. The engine does not. The buffer has been given back in either case.
 */
async function expectFailures(server: ParameterServer, url: string): Promise<void> {
  const updateWith = async (...faults: string[]) => {
    const init = { method: 'POST', body: JSON.stringify({ faults }) }
    expect((await fetch(`${url}/v1/faults`, init)).status).toBe(200)
    const job = { url: `${url}/collective_rpc`, files: writeCheckpoint(), timeout: 30 }
    const { messages, ...answer } = await server.update(job)
    const { torn, updates } = await weightsOf(url)
    return { ...answer, messages: kinds(messages), torn, updates }
  }
  const rest = { held: 0, device_bytes: 0, torn: true, updates: 0 }
  expect(await updateWith('error@1')).toEqual({
    ok: false,
    error: 'RuntimeError: Failed to update weights due to remote errors',
    messages: ['handle', 'list', 'list', 'error'],
    ...rest,
  })
  expect(await updateWith('error@3')).toEqual({
    ok: true,
    messages: ['handle', 'list', 'list', 'list', 'list', 'none', 'none'],
    ...rest,
  })
  await fetch(`${url}/v1/faults`, { method: 'POST', body: JSON.stringify({ faults: [] }) })
}

describe.skipIf(PYTHON === null)("checkpoint-engine's own ParameterServer", () => {
  let reference: string
  let server: ParameterServer

  beforeAll(async () => {
    const listen = ['engine', '--listen', '127.0.0.1:0', '--devices', 'host']
    reference = await startEngine([...CKPT, ...listen])
    const [rank] = (await weightsOf(reference)).ranks
    const uuid = rank.uuid.replace('GPU-', '')
    server = await ParameterServer.start(PYTHON!, 'shm', { uuid, env: BUCKETS })
    processes.push(server)
  }, 120_000)

  test('updates the reference engine', async () => {
    await expectFailures(server, reference)
    for (let update = 0; update < 2; update++) await expectUpdate(server, reference)
  }, 60_000)

  test('updates an engine with ckpt_worker, which replays what it has recorded', async () => {
    const command = [PYTHON!, SCRIPT, ...TORCH, '--worker', 'ckpt_worker']
    const engine = await startEngine(command, { PYTHONPATH: PACKAGE })
    await expectFailures(server, engine)
    for (let update = 0; update < 2; update++) await expectUpdate(server, engine)
    const { reloads } = await expectUpdate(server, engine)
    expect(reloads).toMatchObject([{ replayed: 17, ordinary: 0 }])
  }, 120_000)
})
