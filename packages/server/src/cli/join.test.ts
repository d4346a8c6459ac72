import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { CKPT, request, run } from '../../../../test/support/process.ts'
import { withoutUcx } from '../../../../test/support/ucx.ts'
import { DaemonPair, requireWeights } from './testing/daemon-pair.ts'
import { expectedTensors } from './verify-engine.ts'

setDefaultTimeout(120_000)

let pair: DaemonPair
let engine: string
const files: string[] = []

beforeAll(async () => {
  pair = await DaemonPair.start()
  engine = await pair.engine()
  // each daemon has a part
  for (const node of [0, 1]) {
    const tensor = { name: `w.${node}`, dtype: 'BF16', shape: [64, 8 + node] }
    files.push(...(await pair.register(node, 'v7', [tensor], node)))
  }
})

afterAll(() => pair.stop())

function joined(...args: string[]) {
  return run(pair.joins(engine, '--devices', 'host:2', ...args), pair.environment)
}

test.skipIf(withoutUcx !== null)(
  'a host that has nothing gets what two daemons hold, and leaves',
  async () => {
    const { status, stdout, stderr } = await joined('--checkpoint-version', 'v7', '--json')
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
    const [report] = JSON.parse(stdout).updates
    expect(report).toMatchObject({ version: 'v7', tensors: 2, ranks: 2 })
    expect(report.p2p.bytes).toBe(report.bytes)
    await requireWeights(engine, await expectedTensors(files, 2))
    // nobody counts with it
    const { body } = await request(pair.socket(0), 'GET', '/v1/status')
    expect(body.ranks.length).toBe(2)
  },
)

test.skipIf(withoutUcx !== null)(
  'metas tell where to join: ckpt update with those of a cluster does what ckpt join does',
  async () => {
    const socket = pair.socket(0)
    expect((await request(socket, 'POST', '/v1/checkpoints/m/gather-metas', {})).status).toBe(200)
    const metas = pair.path('metas.json')
    // any of the daemons tells
    const { body } = await request(pair.socket(1), 'GET', '/v1/metas')
    writeFileSync(metas, JSON.stringify(body))
    const update = (name: string, ...more: string[]) => {
      const where = ['--load-metas-file', metas, '--endpoint', engine, '--devices', 'host:2']
      const size = ['--inference-parallel-size', '2']
      return run([...CKPT, 'update', name, ...where, ...size, ...more], pair.environment)
    }
    const token = ['--cluster-token-file', pair.path('token')]
    const { status, stdout, stderr } = await update('m', ...token, '--json')
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
    const [report] = JSON.parse(stdout).updates
    expect(report).toMatchObject({ version: 'v7', tensors: 2 })
    expect(report.p2p.bytes).toBe(report.bytes)
    await requireWeights(engine, await expectedTensors(files, 2))
    const without = await update('m')
    expect(without.status).toBe(2)
    expect(without.stderr).toContain(`joins the cluster at ${pair.leader}: give its`)
    expect((await update('other', ...token)).stderr).toContain("these metas are of checkpoint 'm'")
    const more = await update('m', ...token, '--checkpoint-path', pair.path('model-v7-0'))
    expect(more.status).toBe(2)
    expect(more.stderr).toContain('--checkpoint-path has no place beside it')
    const direct = await update('m', ...token, '--mode', 'direct')
    expect(direct.stderr).toContain('--mode has no place beside it')
    for (const owner of Object.values(body) as { cluster?: string }[]) delete owner.cluster
    writeFileSync(metas, JSON.stringify(body))
    expect((await update('m', ...token)).stderr).toContain('these metas name no cluster')
  },
)

test('another version, a checkpoint that nobody holds, another token, no leader', async () => {
  const other = await joined('--checkpoint-version', 'v8')
  expect(other.status).toBe(1)
  expect(other.stderr).toContain("checkpoint 'm' is held as version v7, not as version v8")
  writeFileSync(pair.path('other-token'), 'another', { mode: 0o600 })
  const strange = await joined(
    '--cluster-token-file',
    pair.path('other-token'),
    '--join-timeout',
    '2',
  )
  expect(strange.status).toBe(3)
  expect(strange.stderr).toContain(`the leader at ${pair.leader} did not answer within 2 s: `)
  expect(strange.stderr).toContain('it has another cluster token, or is no leader')
  const nowhere = await joined('--leader', '127.0.0.1:1', '--join-timeout', '1')
  expect(nowhere.status).toBe(3)
  expect(nowhere.stderr).toContain('the leader at 127.0.0.1:1 did not answer within 1 s')
})
