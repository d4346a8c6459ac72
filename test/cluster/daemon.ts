import { mkdirSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { STAY_MS } from '../../packages/server/src/daemon/rank/keeper.ts'
import type { FaultKind, FaultStep } from '../../packages/server/src/daemon/rank/injected.ts'
import { CKPT, request } from '../support/process.ts'
import { Child } from './child.ts'
import type { ClusterKind } from './kinds.ts'
import { until } from '../support/until.ts'

/** A communicator is made for every update. */
const IDLE = ['--idle-communicator-seconds', '0.05']
const STRUCK_MS = 10_000
/** Beyond {@link STAY_MS}: the update that has made the socket, and the next sweep. */
const LATE_MS = 20_000

export interface DaemonPlace {
  readonly dir: string
  readonly nodeRank: number
  readonly nodes: number
  /** `HOST:PORT`. */
  readonly leader: string
  readonly tokenFile: string
  /** What its command begins with, such as `ip netns exec NAME`. */
  readonly within: readonly string[]
  readonly kind: ClusterKind
}

/** One `ckpt serve` among several. */
export class TestDaemon {
  readonly child: Child
  readonly nodeRank: number
  readonly socket: string
  readonly dir: string
  /** `HOST:PORT`. */
  readonly leader: string
  readonly tokenFile: string
  readonly #faults: string

  constructor({ dir, nodeRank, nodes, leader, tokenFile, within, kind }: DaemonPlace) {
    this.dir = dir
    this.leader = leader
    this.tokenFile = tokenFile
    this.nodeRank = nodeRank
    this.socket = join(dir, 'ckpt.sock')
    this.#faults = join(dir, 'faults')
    mkdirSync(this.#faults, { recursive: true })
    const place = ['--leader', leader, '--node-rank', `${nodeRank}`, '--nodes', `${nodes}`]
    const token = ['--cluster-token-file', tokenFile]
    const where = ['--uds', this.socket, '--state-dir', join(dir, 'state'), '--devices', 'host:2']
    const command = [...within, ...CKPT, 'serve', ...where, '--ranks', '1', ...kind.serve, ...IDLE]
    this.child = new Child(`node ${nodeRank}`, [...command, ...place, ...token], {
      ...kind.env,
      CKPT_FAULT_DIR: this.#faults,
    })
  }

  ask(method: 'GET' | 'POST' | 'DELETE', path: string, body?: unknown) {
    return request(this.socket, method, path, body)
  }

  async register(name: string, files: readonly string[], version: string): Promise<void> {
    const body = { files, replace: true, version }
    const { status, body: answer } = await this.ask('POST', `/v1/checkpoints/${name}/files`, body)
    if (status !== 200) throw new Error(`node ${this.nodeRank}: ${JSON.stringify(answer)}`)
  }

  /** Its rank makes this fault when it comes to that step. */
  arm(kind: FaultKind, step: FaultStep): void {
    // under another name first: what is read is whole
    const file = join(this.#faults, `${kind}@${step}`)
    writeFileSync(`${file}.new`, '')
    renameSync(`${file}.new`, file)
  }

  /** Until its rank has made a fault. */
  async struck(): Promise<void> {
    const what = `the rank of node ${this.nodeRank} to make a fault`
    await until(what, STRUCK_MS, () =>
      readdirSync(this.#faults).some((name) => name.endsWith('.struck')),
    )
  }

  /** What holds goes on, what was not made will not be. */
  disarm(): void {
    for (const name of readdirSync(this.#faults)) rmSync(join(this.#faults, name))
  }

  /** Sockets of engines' workers that are kept for longer than any worker may still come. */
  get oldSockets(): string[] {
    const dir = join(this.dir, 'state', 'engines')
    return readdirSync(dir).filter((name) => {
      return Date.now() - statSync(join(dir, name)).mtimeMs > STAY_MS + LATE_MS
    })
  }
}
