/** Daemons of one rank each and an engine for each rank, as processes of their own on the host library. */
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { EngineReport, Failure, StatusAnswer, UpdateState } from '@ckpt/core'
import { freePort } from '../../packages/server/src/daemon/cluster/testing/free-port.ts'
import { type Scratch, scratch } from '../support/process.ts'
import { TestVersion } from './checkpoint.ts'
import { TestDaemon } from './daemon.ts'
import { TestEngine } from './engine.ts'
import { type ClusterKind, KINDS, type Way } from './kinds.ts'
import { until } from '../support/until.ts'

export const NAME = 'model'
const KEPT_VERSIONS = 2
const JOIN_MS = 15_000
const END_MS = 10_000

/** Where the daemons run. */
export interface Network {
  /** `HOST` of the leader as the others reach it. */
  readonly leader: string
  /** What a command of this node begins with. */
  within(node: number): readonly string[]
  /** From now on nothing that this node sends or is sent arrives. */
  cut(node: number): Promise<void>
  mend(node: number): Promise<void>
  close(): Promise<void>
}

/** All of them on this host's loopback, which nobody can cut. */
export const LOOPBACK: Network = {
  leader: '127.0.0.1',
  within: () => [],
  cut: () => Promise.reject(new Error('nothing to cut')),
  mend: () => Promise.reject(new Error('nothing to mend')),
  close: () => Promise.resolve(),
}

export interface Answer {
  readonly status: number
  readonly failure: Failure | null
  readonly engines: readonly EngineReport[]
  /** From when the request was sent. */
  readonly seconds: number
}

export class TestCluster {
  readonly network: Network
  readonly kind: ClusterKind
  readonly daemons: readonly TestDaemon[]
  readonly engines: readonly TestEngine[]
  readonly #dir: Scratch
  readonly #versions: TestVersion[] = []
  #seed = 0
  #updates = 0

  static async start(which: Way | ClusterKind, network: Network = LOOPBACK): Promise<TestCluster> {
    const kind = typeof which === 'string' ? KINDS[which] : which
    const cluster = new TestCluster(kind, network, freePort())
    try {
      const children = [...cluster.daemons, ...cluster.engines].map(({ child }) => child)
      await Promise.all(children.map((child) => child.start()))
      await cluster.joined()
      await cluster.#meetEngines()
      return cluster
    } catch (error) {
      await cluster.end()
      throw error
    }
  }

  /**
   * What an engine answers to one update tells how the next one may go. Afterwards every process has what it makes once and keeps, so
   * that what it holds is comparable.
   */
  async #meetEngines(): Promise<void> {
    const modes = this.kind.way === 'direct' ? ['pipelined', 'direct'] : [this.kind.mode]
    for (const mode of modes) {
      await this.register()
      const { failure } = await this.update(0, this.nextUpdateId(), { mode })
      if (failure !== null) throw new Error(JSON.stringify(failure))
    }
  }

  private constructor(kind: ClusterKind, network: Network, port: number) {
    const { nodes } = kind
    this.kind = kind
    this.network = network
    this.#dir = scratch()
    const tokenFile = join(this.#dir.path, 'token')
    writeFileSync(tokenFile, `${crypto.randomUUID()}${crypto.randomUUID()}\n`, { mode: 0o600 })
    const leader = `${network.leader}:${port}`
    this.daemons = Array.from({ length: nodes }, (_, nodeRank) => {
      const dir = join(this.#dir.path, `n${nodeRank}`)
      mkdirSync(dir, { mode: 0o700 })
      const within = network.within(nodeRank)
      return new TestDaemon({ dir, nodeRank, nodes, leader, tokenFile, within, kind })
    })
    this.engines = this.daemons.map(({ dir, nodeRank }) => {
      const socket = join(dir, 'engine.sock')
      return new TestEngine(nodeRank, socket, network.within(nodeRank), kind.engine)
    })
  }

  daemon(node: number): TestDaemon {
    return this.daemons[node] as TestDaemon
  }

  engine(rank: number): TestEngine {
    return this.engines[rank] as TestEngine
  }

  get leader(): TestDaemon {
    return this.daemon(0)
  }

  async status(node: number): Promise<StatusAnswer> {
    return (await this.daemon(node).ask('GET', '/v1/status')).body
  }

  /** Node ranks that this daemon is joined with. */
  async peers(node: number): Promise<readonly number[]> {
    const { cluster } = await this.status(node)
    return cluster?.peers.map((peer) => peer.node_rank) ?? []
  }

  /** Until the leader can use the ranks of every daemon, and none of them is in a session that only one side believes in. */
  async joined(): Promise<void> {
    await until('every daemon to have joined', JOIN_MS, async () => {
      const { ranks, cluster } = await this.status(0)
      if (ranks.length !== this.kind.nodes) return false
      const own = await Promise.all(
        (cluster?.peers ?? []).map((peer) => this.status(peer.node_rank)),
      )
      return own.every((one, i) => one.cluster?.peers[0]?.session === cluster?.peers[i]?.session)
    })
  }

  makeVersion(): TestVersion {
    const version = new TestVersion(this.#dir.path, ++this.#seed, this.kind.shape)
    // an engine may have the one before
    if (this.#versions.push(version) > KEPT_VERSIONS) this.#versions.shift()?.remove()
    return version
  }

  /** A new version, of which every daemon registers its part. */
  async register(): Promise<TestVersion> {
    const version = this.makeVersion()
    await Promise.all(this.daemons.map((one) => this.registerAt(one.nodeRank, version)))
    return version
  }

  async registerAt(
    node: number,
    version: TestVersion,
    files = version.filesOf(node),
  ): Promise<void> {
    await this.daemon(node).register(NAME, files, version.name)
  }

  nextUpdateId(): string {
    return `update-${++this.#updates}`
  }

  /** Asked of this daemon. */
  async update(node: number, id: string, more: object = {}): Promise<Answer> {
    const engines = this.engines.map(({ target }) => target)
    const { mode } = this.kind
    const body = { update_id: id, engines, mode, timeout: 20, open_timeout: 10, ...more }
    const beganMs = performance.now()
    const { status, body: told } = await this.daemon(node).ask(
      'POST',
      `/v1/checkpoints/${NAME}/update`,
      body,
    )
    const seconds = (performance.now() - beganMs) / 1000
    return { status, failure: told?.error ?? null, engines: told?.engines ?? [], seconds }
  }

  /** Of an update, as the leader sees it; null: it does not know it yet. */
  async state(id: string): Promise<UpdateState | null> {
    const { status, body } = await this.leader.ask('GET', `/v1/updates/${id}`)
    return status === 200 ? body : null
  }

  /** Shared memory of processes that are gone. */
  get leftMemory(): readonly string[] {
    const all = [...this.daemons, ...this.engines]
    const dead = new Set(all.flatMap(({ child }) => child.deadPids))
    return readdirSync('/dev/shm').filter((name) => {
      const pid = /^ckpt-(\d+)-/.exec(name)?.[1]
      return pid !== undefined && dead.has(Number(pid))
    })
  }

  /** Ends everything. Returns what had to be killed, or ended with a failure. */
  async end(): Promise<readonly string[]> {
    const children = [...this.engines, ...this.daemons].map(({ child }) => child)
    const ended = await Promise.all(
      children.map(async (child) => {
        if (child.pids.length === 0) return []
        const status = await child.end(END_MS)
        return status === 0 ? [] : [`${child.name} ended with status ${status}`]
      }),
    )
    await this.network.close()
    this.#dir.remove()
    return ended.flat()
  }
}
