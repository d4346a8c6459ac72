import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { EngineMapAnswer, UpdateReport } from '@ckpt/core'
import {
  CKPT,
  run,
  type Scratch,
  type Started,
  scratch,
  start,
} from '../../../../test/support/process.ts'
import { engineMapText } from './engine-map.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

setDefaultTimeout(60_000)

const RANK = {
  rank: 0,
  digest: '0123456789abcdef0123',
  tensors: 3,
  copies: 40,
  bytes: 1_500_000,
  allocations: [1_000_000, 2_000_000],
}
const ANSWER: EngineMapAnswer = { url: 'http://e', ranks: [RANK, { ...RANK, rank: 1, copies: 4 }] }
const PLACED = {
  source: 1_234_567,
  allocation: 1,
  destination: 64,
  run: 256,
  sizes: [1, 1, 1],
  source_strides: [0, 0, 0],
  destination_strides: [0, 0, 0],
}

test('a row of each rank, with the sum of its allocations and the beginning of its digest', () => {
  const [head, first, second, ...rest] = engineMapText(ANSWER).split('\n')
  expect(head).toMatch(/^rank +tensors +copies +bytes +allocations +allocated +digest$/)
  expect(first).toMatch(/^ +0 +3 +40 +1\.5 MB +2 +3\.0 MB +0123456789ab$/)
  expect(second).toMatch(/^ +1 +3 +4 +1\.5 MB/)
  expect(rest).toEqual([])
})

test('the copies of a tensor, with the dimensions that have more than one index', () => {
  const strided = {
    ...PLACED,
    sizes: [1, 2, 3],
    source_strides: [0, 768, 256],
    destination_strides: [0, 96, 512],
  }
  const tensor = { name: 'w\u001b[2J', dtype: 'bfloat16', shape: [6, 128] }
  const ranks = [
    { ...RANK, placed: [PLACED, strided] },
    { ...RANK, rank: 1, placed: [] },
  ]
  const lines = engineMapText({ ...ANSWER, tensor, ranks }).split('\n')
  // a terminal must not obey what is in a name
  expect(lines[4]).toBe('w\\x1b[2J: bfloat16 [6, 128]')
  expect(lines[6]).toMatch(/^rank +from +bytes +allocation +to +sizes +strides from +strides to$/)
  expect(lines[7]).toMatch(/^ +0 +1234567 +256 +1 +64 +- +- +-$/)
  expect(lines[8]).toMatch(/^ +0 +1234567 +256 +1 +64 +2 x 3 +768 x 256 +96 x 512$/)
  expect(lines[9]).toMatch(/^ +1 +- +- +- +- +- +- +-$/)
})

let dir: Scratch
let socket: string
let daemon: Started
let engine: Started

beforeAll(async () => {
  dir = scratch()
  socket = join(dir.path, 'ckpt.sock')
  const serve = ['serve', '--uds', socket, '--state-dir', join(dir.path, 'state')]
  const reference = ['engine', '--listen', '127.0.0.1:0', '--direct']
  ;[daemon, engine] = await Promise.all([
    start([...CKPT, ...serve, '--devices', 'host', '--json'], /"address": ?"([^"]+)"/),
    start([...CKPT, ...reference, '--devices', 'host', '--json'], /"url": ?"([^"]+)"/),
  ])
})

afterAll(async () => {
  await Promise.all([daemon?.stop(), engine?.stop()])
  dir.remove()
})

function there(...args: string[]) {
  return run([...CKPT, ...args, '--daemon', socket])
}

async function update(seed: number): Promise<UpdateReport> {
  const path = join(dir.path, `model-${seed}`)
  mkdirSync(path)
  await writeCheckpoint(path, [{ name: 'w', dtype: 'BF16', shape: [8, 64] }], seed, 300_000)
  const engineArgs = ['--endpoint', engine.ready[1]!, '--inference-parallel-size', '1']
  const args = ['update', '--checkpoint-path', path, ...engineArgs, '--json']
  const { status, stdout } = await there(...args)
  expect(status).toBe(0)
  return JSON.parse(stdout)
}

test('of an engine that may be updated directly, as text and as JSON', async () => {
  const url = engine.ready[1]!
  const early = await there('engine-map', url)
  expect({ status: early.status, stdout: early.stdout }).toEqual({ status: 1, stdout: '' })
  expect(early.stderr).toStartWith(`ckpt: no engine at ${url} has told this daemon where`)
  await update(1)
  const { status, stdout } = await there('engine-map', url, '--tensor', 'w', '--json')
  expect(status).toBe(0)
  const answer = JSON.parse(stdout) as EngineMapAnswer
  expect(answer.tensor).toEqual({ name: 'w', dtype: 'bfloat16', shape: [8, 64] })
  expect(answer.ranks).toMatchObject([
    { tensors: 1, copies: 1, bytes: 1024, placed: [{ source: 0, run: 1024 }] },
  ])
  const text = await there('engine-map', url, '--tensor', 'w')
  expect(text.stdout.trimEnd()).toBe(engineMapText(answer))
  const missing = await there('engine-map', url, '--tensor', 'v')
  expect(missing.status).toBe(1)
  expect(missing.stderr).toContain(`the placement map of the engine at ${url} has no v`)
})
