import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { EngineWeights } from '@ckpt/core'
import {
  CKPT,
  request,
  run,
  type Scratch,
  type Started,
  scratch,
  start,
} from '../../../../test/support/process.ts'
import { withoutUcx } from '../../../../test/support/ucx.ts'
import { expectedTensors } from './verify-engine.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

setDefaultTimeout(120_000)

let dir: Scratch
let leader: string
let files: readonly string[]
const started: Started[] = []

function path(name: string): string {
  return join(dir.path, name)
}

async function daemon(node: number, at: string): Promise<void> {
  const own = ['--uds', path(`${node}.sock`), '--state-dir', path(`state-${node}`)]
  const place = ['--leader', at, '--node-rank', String(node), '--nodes', '2']
  const cluster = [...place, '--cluster-token-file', path('token')]
  const serve = [...CKPT, 'serve', '--devices', 'host', ...own, ...cluster]
  started.push(await start(serve, /ckpt is ready/))
}

beforeAll(async () => {
  dir = scratch()
  writeFileSync(path('token'), 'a-token', { mode: 0o600 })
  await daemon(0, '127.0.0.1:0')
  leader = /at 'tcp:\/\/([^']+)'/.exec(started[0]!.stderr())![1]!
  await daemon(1, leader)
  const engine = ['engine', '--listen', '127.0.0.1:0', '--tensor-parallel-size', '2']
  started.push(
    await start([...CKPT, ...engine, '--devices', 'host:2', '--json'], /"url": ?"([^"]+)"/),
  )
  // each daemon has a part
  for (const node of [0, 1]) {
    mkdirSync(path(`model-${node}`))
    const tensor = { name: `w.${node}`, dtype: 'BF16', shape: [64, 8 + node] }
    const written = await writeCheckpoint(path(`model-${node}`), [tensor], node, 300_000)
    files = [...(files ?? []), ...written.files]
    const body = { files: written.files, version: 'v7' }
    const { status } = await request(path(`${node}.sock`), 'POST', '/v1/checkpoints/m/files', body)
    expect(status).toBe(200)
  }
})

afterAll(async () => {
  await Promise.all(started.map((one) => one.stop()))
  dir.remove()
})

function joined(...args: string[]) {
  const where = ['--leader', leader, '--cluster-token-file', path('token')]
  const engine = ['--endpoint', started[2]!.ready[1]!, '--inference-parallel-size', '2']
  const command = [...CKPT, 'join', 'm', ...where, ...engine, '--devices', 'host:2', ...args]
  return run(command, { XDG_RUNTIME_DIR: dir.path, XDG_STATE_HOME: dir.path })
}

test.skipIf(withoutUcx !== null)(
  'a host that has nothing gets what two daemons hold, and leaves',
  async () => {
    const { status, stdout, stderr } = await joined('--checkpoint-version', 'v7', '--json')
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
    const [report] = JSON.parse(stdout).updates
    expect(report).toMatchObject({ version: 'v7', tensors: 2, ranks: 2 })
    expect(report.p2p.bytes).toBe(report.bytes)
    const answer = await fetch(`${started[2]!.ready[1]}/v1/weights`)
    const weights = (await answer.json()) as EngineWeights
    for (const [name, { sha256 }] of await expectedTensors(files, 2)) {
      for (const [rank, wanted] of sha256.entries()) {
        expect(weights.ranks[rank]?.tensors[name]?.sha256).toBe(wanted)
      }
    }
    // nobody counts with it
    const { body } = await request(path('0.sock'), 'GET', '/v1/status')
    expect(body.ranks.length).toBe(2)
  },
)

test('another version, a checkpoint that nobody holds, another token, no leader', async () => {
  const other = await joined('--checkpoint-version', 'v8')
  expect(other.status).toBe(1)
  expect(other.stderr).toContain("checkpoint 'm' is held as version v7, not as version v8")
  writeFileSync(path('other-token'), 'another', { mode: 0o600 })
  const strange = await joined('--cluster-token-file', path('other-token'), '--join-timeout', '2')
  expect(strange.status).toBe(3)
  expect(strange.stderr).toContain(`the leader at ${leader} did not answer within 2 s: `)
  expect(strange.stderr).toContain('it has another cluster token, or is no leader')
  const nowhere = await joined('--leader', '127.0.0.1:1', '--join-timeout', '1')
  expect(nowhere.status).toBe(3)
  expect(nowhere.stderr).toContain('the leader at 127.0.0.1:1 did not answer within 1 s')
})
