/** `ckpt join --keep` with real daemons, on the host library: every byte in the engines. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
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

setDefaultTimeout(180_000)

const RANKS = ['--inference-parallel-size', '2']

let dir: Scratch
let leader: string
/** Of the cluster; the first one leads. */
const daemons: Started[] = []
const others: Started[] = []

const path = (name: string) => join(dir.path, name)

async function daemon(node: number, at: string): Promise<void> {
  const own = ['--uds', path(`${node}.sock`), '--state-dir', path(`state-${node}`)]
  const place = ['--leader', at, '--node-rank', String(node), '--nodes', '2']
  const cluster = [...place, '--cluster-token-file', path('token')]
  const serve = [...CKPT, 'serve', '--devices', 'host', ...own, ...cluster]
  daemons.push(await start(serve, /ckpt is ready/))
}

async function engine(): Promise<string> {
  const listen = ['engine', '--listen', '127.0.0.1:0', '--tensor-parallel-size', '2']
  const command = [...CKPT, ...listen, '--devices', 'host:2', '--json']
  const one = await start(command, /"url": ?"([^"]+)"/)
  others.push(one)
  return one.ready[1]!
}

/** Each daemon has a part, the second one in place. Returns the files. */
async function register(version: string, seed: number): Promise<string[]> {
  const files: string[] = []
  for (const node of [0, 1]) {
    const model = path(`model-${version}-${node}`)
    mkdirSync(model)
    const tensors = [64, 30_000].map((rows, i) => {
      return { name: `w.${node}.${i}`, dtype: 'BF16', shape: [rows, 8 + node] }
    })
    const written = await writeCheckpoint(model, tensors, seed + node, 300_000)
    files.push(...written.files)
    const body = { files: written.files, version, replace: true, in_place: node === 1 }
    const { status } = await request(path(`${node}.sock`), 'POST', '/v1/checkpoints/m/files', body)
    expect(status).toBe(200)
  }
  return files
}

async function weights(url: string): Promise<EngineWeights> {
  return (await (await fetch(`${url}/v1/weights`)).json()) as EngineWeights
}

type Expected = Awaited<ReturnType<typeof expectedTensors>>

async function requireWeights(url: string, expected: Expected): Promise<void> {
  const held = await weights(url)
  expect(held.torn).toBe(false)
  for (const [name, { sha256 }] of expected) {
    for (const [rank, wanted] of sha256.entries()) {
      expect(held.ranks[rank]?.tensors[name]?.sha256).toBe(wanted)
    }
  }
}

beforeAll(async () => {
  dir = scratch()
  writeFileSync(path('token'), 'a-token', { mode: 0o600 })
  await daemon(0, '127.0.0.1:0')
  leader = /at 'tcp:\/\/([^']+)'/.exec(daemons[0]!.stderr())![1]!
  await daemon(1, leader)
})

afterAll(async () => {
  await Promise.all([...daemons, ...others].map((one) => one.stop()))
  dir.remove()
})

const environment = () => ({ XDG_RUNTIME_DIR: dir.path, XDG_STATE_HOME: dir.path })

function command(url: string, ...more: string[]): string[] {
  const where = ['--leader', leader, '--cluster-token-file', path('token'), '--keep']
  return [...CKPT, 'join', 'm', ...where, '--endpoint', url, ...RANKS, ...more]
}

const DEVICES = ['--devices', 'host:2']

async function checkpoints(socket: string) {
  const { status, stdout } = await run([...CKPT, 'ls', '--daemon', socket, '--json'])
  expect(status).toBe(0)
  return JSON.parse(stdout).checkpoints
}

describe.skipIf(withoutUcx !== null)('ckpt join --keep', () => {
  test('what fails before the copy is there leaves the engine as it was, and nobody behind', async () => {
    await register('v1', 1)
    const url = await engine()
    const fails = async (...more: string[]) => {
      const { status, stderr } = await run(command(url, ...DEVICES, ...more), environment())
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
      command(url, '--daemon', path('x.sock')).filter((word) => word !== '--keep'),
    )
    expect(useless.status).toBe(2)
    expect(useless.stderr).toContain('--daemon needs --keep')
    expect((await weights(url)).updates).toBe(0)
    expect(existsSync(path('ckpt/ckpt.sock'))).toBe(false)
    for (const node of [0, 1]) {
      const { body } = await request(path(`${node}.sock`), 'GET', '/v1/checkpoints/m')
      expect(body.in_use).toBe(false)
    }
  })

  test('a daemon that runs takes the copy, and a newer one in its place', async () => {
    const socket = path('running.sock')
    const own = ['--uds', socket, '--state-dir', path('running'), '--devices', 'host:2']
    others.push(await start([...CKPT, 'serve', ...own, '--ranks', '2'], /ckpt is ready/))
    const url = await engine()
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
    const [first, second] = [await engine(), await engine()]
    const kept = await start(command(first, ...DEVICES), /the copy is held until/, environment())
    expect(kept.stderr()).toContain('holds a copy')
    await requireWeights(first, expected)
    const socket = path('ckpt/ckpt.sock')
    expect(await checkpoints(socket)).toMatchObject([{ name: 'm', version: 'v7', tensors: 4 }])
    // nobody counts with it
    const { body } = await request(path('0.sock'), 'GET', '/v1/status')
    expect(body.ranks).toHaveLength(2)
    await Promise.all(daemons.map((one) => one.stop('SIGKILL')))
    for (const file of files) writeFileSync(file, 'other bytes')
    const update = [...CKPT, 'update', 'm', '--endpoint', second, ...RANKS]
    const { status, stderr } = await run(update, environment())
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
    await requireWeights(second, expected)
    expect(await kept.stop()).toBe(0)
    expect(existsSync(socket)).toBe(false)
  })
})
