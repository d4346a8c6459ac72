/** Two daemons of one cluster as processes on the host library, engines of two ranks, and what these must hold. */
import { expect } from 'bun:test'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { EngineWeights } from '@ckpt/core'
import { CKPT, request, type Started, scratch, start } from '../../../../../test/support/process.ts'
import type { TensorShape } from '../model-shapes.ts'
import { type expectedTensors, verifyEngine } from '../verify-engine.ts'
import { writeCheckpoint } from '../write-checkpoint.ts'

const RANKS = 2
const SHARD_BYTES = 300_000

export class DaemonPair {
  /** In the order in which they were started. */
  readonly daemons: Started[] = []
  readonly #dir = scratch()
  readonly #engines: Started[] = []

  constructor() {
    writeFileSync(this.path('token'), 'a-token\n', { mode: 0o600 })
  }

  /** Both run; the first one leads at a port of its own choice. */
  static async start(): Promise<DaemonPair> {
    const pair = new DaemonPair()
    await pair.daemon(0, '127.0.0.1:0')
    await pair.daemon(1, pair.leader)
    return pair
  }

  /** Of a file in the directory of both. */
  path(name: string): string {
    return join(this.#dir.path, name)
  }

  socket(node: number): string {
    return this.path(`${node}.sock`)
  }

  /** Where the first one leads, as it says itself. */
  get leader(): string {
    return /at 'tcp:\/\/([^']+)'/.exec(this.daemons[0]!.stderr())![1]!
  }

  /** One of them. */
  async daemon(node: number, leader: string, ...flags: string[]): Promise<Started> {
    const own = ['--uds', this.socket(node), '--state-dir', this.path(`state-${node}`)]
    const place = ['--leader', leader, '--node-rank', String(node), '--nodes', '2']
    const cluster = [...place, '--cluster-token-file', this.path('token')]
    const serve = [...CKPT, 'serve', '--devices', 'host', ...own, ...cluster, ...flags]
    const daemon = await start(serve, /ckpt is ready at/)
    this.daemons.push(daemon)
    return daemon
  }

  /** Returns its URL. */
  async engine(): Promise<string> {
    const listen = ['engine', '--listen', '127.0.0.1:0', '--tensor-parallel-size', String(RANKS)]
    const command = [...CKPT, ...listen, '--devices', `host:${RANKS}`, '--json']
    const engine = await start(command, /"url": ?"([^"]+)"/)
    this.#engines.push(engine)
    return engine.ready[1]!
  }

  /** A daemon's part of checkpoint `m`. Returns its files. */
  async register(
    node: number,
    version: string,
    tensors: readonly TensorShape[],
    seed: number,
    more: { readonly replace?: boolean; readonly in_place?: boolean } = {},
  ): Promise<readonly string[]> {
    const model = this.path(`model-${version}-${node}`)
    mkdirSync(model)
    const { files } = await writeCheckpoint(model, tensors, seed, SHARD_BYTES)
    const body = { files, version, ...more }
    const { status } = await request(this.socket(node), 'POST', '/v1/checkpoints/m/files', body)
    expect(status).toBe(200)
    return files
  }

  /** `ckpt join` of another host, for an engine. */
  joins(url: string, ...more: string[]): string[] {
    const where = ['--leader', this.leader, '--cluster-token-file', this.path('token')]
    const engine = ['--endpoint', url, '--inference-parallel-size', String(RANKS)]
    return [...CKPT, 'join', 'm', ...where, ...engine, ...more]
  }

  /** Of that host: it knows no daemon but one that it starts itself. */
  get environment(): Record<string, string> {
    return { XDG_RUNTIME_DIR: this.#dir.path, XDG_STATE_HOME: this.#dir.path }
  }

  async stop(): Promise<void> {
    await Promise.all([...this.daemons, ...this.#engines].map((one) => one.stop()))
    this.#dir.remove()
  }
}

export async function weightsOf(url: string): Promise<EngineWeights> {
  return (await (await fetch(`${url}/v1/weights`)).json()) as EngineWeights
}

/** Every tensor of every rank, and no others. */
export async function requireWeights(
  url: string,
  expected: Awaited<ReturnType<typeof expectedTensors>>,
): Promise<void> {
  const held = await weightsOf(url)
  expect(held.torn).toBe(false)
  expect(verifyEngine(held, expected, RANKS).tensors).toBe(RANKS * expected.size)
}
