/** Direct updates from end to end: our daemon on the host library, and an engine whose workers are `ckpt_worker`'s. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { randomTensor, writeSafetensors } from './support/checkpoint.ts'
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

const PYTHON = python()
const ENGINE = join(ROOT, 'test/python/vllm_like_engine.py')
const PYTHONPATH = join(ROOT, 'python/ckpt_worker')
const TIMEOUT_MS = 120_000
const EXPERTS = 6
const OTHERS = 14

function writeVersion(dir: string, seed: number): string {
  const path = join(dir, `version-${seed}.safetensors`)
  const tensor = (name: string, dtype: string, itemBytes: number, ...shape: number[]) =>
    randomTensor(seed, name, dtype, itemBytes, ...shape)
  writeSafetensors(path, [
    ...['q', 'k', 'v'].map((name) => tensor(name, 'BF16', 2, 64, 48)),
    ...Array.from({ length: EXPERTS }, (_, i) => [
      tensor(`experts.${i}.w1`, 'BF16', 2, 24, 40),
      tensor(`experts.${i}.w2`, 'BF16', 2, 40, 24),
      tensor(`experts.${i}.w3`, 'BF16', 2, 24, 40),
      tensor(`experts.${i}.scale`, 'F32', 4, 3),
    ]).flat(),
    tensor('head', 'BF16', 2, 101, 48),
    ...Array.from({ length: OTHERS }, (_, i) =>
      i % 3 === 0
        ? tensor(`other.${i}`, 'F16', 2, 33)
        : tensor(`other.${i}`, i % 3 === 1 ? 'F32' : 'I8', i % 3 === 1 ? 4 : 1, 16 + i, 12),
    ),
  ])
  return path
}

describe.skipIf(PYTHON === null)('direct updates of an engine with ckpt_worker', () => {
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

  async function startEngine(ranks: number, layout: number): Promise<Started> {
    const like = writeVersion(dir.path, 0)
    const args = ['--ranks', String(ranks), '--layout', String(layout), '--like', like]
    return await start([PYTHON!, ENGINE, ...args], /ready (\S+)/, { PYTHONPATH })
  }

  /** Registers a version, updates the engine with it, and asks which parameters are not what it makes of them. */
  async function update(engine: Started, ranks: number, seed: number, more: object = {}) {
    const path = writeVersion(dir.path, seed)
    await request(socket, 'POST', '/v1/checkpoints/model/files', { files: [path], replace: true })
    const update_url = `${engine.ready[1]}/collective_rpc`
    const body = { update_url, ranks: [...Array(ranks).keys()], timeout: 60, ...more }
    const answer = await request(socket, 'POST', '/v1/checkpoints/model/update', body)
    const asked = { method: 'POST', body: JSON.stringify({ file: path }) }
    const wrong = await (await fetch(`${engine.ready[1]}/v1/wrong`, asked)).json()
    return { answer, wrong }
  }

  // one layout is for a rank that is alone, the others cut tensors in two
  test.each([
    [1, 1],
    [2, 2],
    [2, 3],
    [2, 4],
  ])(
    '%d ranks, layout %d: loaded, placed and replayed, every version is what the engine makes of its files',
    async (ranks, layout) => {
      const engine = await startEngine(ranks, layout)
      const nothing = Array(ranks).fill([])
      try {
        const ways = [
          ['pipelined', {}],
          ['direct', {}],
          ['direct', { mode: 'direct' }],
          ['pipelined', { mode: 'pipelined' }],
          ['direct', {}],
        ] as const
        for (const [seed, [mode, more]] of ways.entries()) {
          const { answer, wrong } = await update(engine, ranks, layout * 100 + seed, more)
          const { body } = answer
          expect({ status: answer.status, mode: body.mode, wrong, error: body.error }).toEqual({
            status: 200,
            mode,
            wrong: nothing,
            error: undefined,
          })
        }
      } finally {
        await engine.stop('SIGINT')
      }
      expect(readdirSync('/dev/shm').filter((name) => name.startsWith('ckpt-like-'))).toEqual([])
    },
    TIMEOUT_MS,
  )
})
