/** `ckpt join --keep` with real daemons, on the host library: every byte in the engines. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, writeFileSync } from 'node:fs'
import { CKPT, request, run, type Started, start } from '../../../../test/support/process.ts'
import { withoutUcx } from '../../../../test/support/ucx.ts'
import { DaemonPair, requireWeights, weightsOf } from './testing/daemon-pair.ts'
import { expectedTensors } from './verify-engine.ts'

setDefaultTimeout(180_000)

const DEVICES = ['--devices', 'host:2']

let pair: DaemonPair
/** Besides the two of the cluster. */
const others: Started[] = []

/** Each daemon has a part, the second one in place. Returns the files. */
async function register(version: string, seed: number): Promise<string[]> {
  const files: string[] = []
  for (const node of [0, 1]) {
    const tensors = [64, 30_000].map((rows, i) => {
      return { name: `w.${node}.${i}`, dtype: 'BF16', shape: [rows, 8 + node] }
    })
    const more = { replace: true, in_place: node === 1 }
    files.push(...(await pair.register(node, version, tensors, seed + node, more)))
  }
  return files
}

beforeAll(async () => {
  pair = await DaemonPair.start()
})

afterAll(async () => {
  await Promise.all(others.map((one) => one.stop()))
  await pair.stop()
})

function command(url: string, ...more: string[]): string[] {
  return pair.joins(url, '--keep', ...more)
}

async function checkpoints(socket: string) {
  const { status, body } = await request(socket, 'GET', '/v1/checkpoints')
  expect(status).toBe(200)
  return body.checkpoints
}

describe.skipIf(withoutUcx !== null)('ckpt join --keep', () => {
  test('what fails before the copy is there leaves the engine as it was, and nobody behind', async () => {
    await register('v1', 1)
    const url = await pair.engine()
    const fails = async (...more: string[]) => {
      const { status, stderr } = await run(command(url, ...DEVICES, ...more), pair.environment)
      return { status, stderr }
    }
    const full = await fails('--host-memory-gib', '0.0001')
    expect(full.status).toBe(1)
    expect(full.stderr).toMatch(/checkpoint 'm'.*host memory|host memory.*'m'/s)
    const other = await fails('--checkpoint-version', 'v2')
    expect(other.status).toBe(1)
    expect(other.stderr).toContain("checkpoint 'm' is held as version v1, not as version v2")
    const nowhere = await fails('--leader', '127.0.0.1:1', '--join-timeout', '1')
    expect(nowhere.status).toBe(3)
    expect(nowhere.stderr).toContain('did not answer within 1 s')
    const useless = await run(
      command(url, '--daemon', pair.path('x.sock')).filter((word) => word !== '--keep'),
    )
    expect(useless.status).toBe(2)
    expect(useless.stderr).toContain('--daemon needs --keep')
    expect((await weightsOf(url)).updates).toBe(0)
    expect(existsSync(pair.path('ckpt/ckpt.sock'))).toBe(false)
    for (const node of [0, 1]) {
      const { body } = await request(pair.socket(node), 'GET', '/v1/checkpoints/m')
      expect(body.in_use).toBe(false)
    }
  })

  test('a daemon that runs takes the copy, and a newer one in its place', async () => {
    const socket = pair.path('running.sock')
    const own = ['--uds', socket, '--state-dir', pair.path('running'), '--devices', 'host:2']
    others.push(await start([...CKPT, 'serve', ...own, '--ranks', '2'], /ckpt is ready/))
    const url = await pair.engine()
    const limits = [...DEVICES, '--ring-gib', '1', '--host-memory-gib', '1']
    const useless = await run(command(url, '--daemon', socket, ...limits))
    expect(useless.status).toBe(2)
    expect(useless.stderr).toContain('runs already')
    expect(useless.stderr).toContain('--devices and --ring-gib and --host-memory-gib')
    expect(await checkpoints(socket)).toEqual([])
    for (const version of ['v3', 'v4']) {
      const files = await register(version, Number(version.slice(1)) * 10)
      const { status, stdout, stderr } = await run(command(url, '--daemon', socket, '--json'))
      expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
      const { registered, updates } = JSON.parse(stdout)
      expect(registered).toMatchObject({ name: 'm', version, tensors: 4 })
      // out of its own memory
      expect(updates[0]).toMatchObject({ version, tensors: 4, ranks: 2 })
      expect(updates[0].p2p).toBeUndefined()
      await requireWeights(url, await expectedTensors(files, 2))
      const held = await checkpoints(socket)
      expect(held).toHaveLength(1)
      expect(held[0]).toMatchObject({ name: 'm', version, state: 'complete', in_place: false })
    }
  })

  test('without one it is the daemon, and does without the others until it is ended', async () => {
    const files = await register('v7', 70)
    const expected = await expectedTensors(files, 2)
    const [first, second] = [await pair.engine(), await pair.engine()]
    const kept = await start(command(first, ...DEVICES), /the copy is held until/, pair.environment)
    expect(kept.stderr()).toContain('holds a copy')
    await requireWeights(first, expected)
    const socket = pair.path('ckpt/ckpt.sock')
    const listed = await run([...CKPT, 'ls', '--daemon', socket, '--json'])
    expect(listed.status).toBe(0)
    const { checkpoints: held } = JSON.parse(listed.stdout)
    expect(held).toMatchObject([{ name: 'm', version: 'v7', tensors: 4 }])
    // nobody counts with it
    const { body } = await request(pair.socket(0), 'GET', '/v1/status')
    expect(body.ranks).toHaveLength(2)
    await Promise.all(pair.daemons.map((one) => one.stop('SIGKILL')))
    for (const file of files) writeFileSync(file, 'other bytes')
    const update = [...CKPT, 'update', 'm', '--endpoint', second, '--inference-parallel-size', '2']
    const { status, stderr } = await run(update, pair.environment)
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
    await requireWeights(second, expected)
    expect(await kept.stop()).toBe(0)
    expect(existsSync(socket)).toBe(false)
  })
})
