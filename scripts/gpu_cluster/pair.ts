import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { UpdateReport, UpdateRequest } from '@ckpt/core'
import { freePort } from '../../packages/server/src/daemon/cluster/testing/free-port.ts'
import { until } from '../../test/support/until.ts'
import { devicesOf, environmentOf, type Layout, ranksOf } from './layout.ts'
import { removeAtExit } from './leftovers.ts'
import { Daemon, Engine, type Processes } from './processes.ts'
import type { StepPlace } from './steps.ts'
import type { Compared, TestVersions, Version } from './versions.ts'

const JOIN_MS = 20_000

/** What an update was, as whoever asked for it has seen it. */
export interface Seen {
  readonly report: UpdateReport
  /** From request to answer. */
  readonly seconds: number
}

export interface PairOptions {
  /** Of both daemons. */
  readonly flags?: readonly string[]
  /** Of both engines. */
  readonly engineFlags?: readonly string[]
  /** Of both daemons. */
  readonly env?: Readonly<Record<string, string>>
}

/** A leader and a follower, each with an engine. */
export class Pair {
  readonly layout: Layout
  readonly dir: string
  readonly processes: Processes
  readonly daemons: readonly [Daemon, Daemon]
  readonly engines: readonly [Engine, Engine]
  readonly leaderAddress: string
  readonly tokenFile: string
  readonly kind: 'cuda' | 'host'

  /**
   * Starts all of them, in a step.
   */
  static async start(
    { stack, processes, say }: StepPlace,
    kind: 'cuda' | 'host',
    layout: Layout,
    { flags = [], engineFlags = [], env = {} }: PairOptions = {},
  ): Promise<Pair> {
    const options = { flags, engineFlags, env }
    const pair = new Pair(processes, kind, layout, options, freePort())
    stack.defer(() => rmSync(pair.dir, { recursive: true, force: true }))
    await processes.start(...[...pair.daemons, ...pair.engines].map(({ child }) => child))
    await pair.joined()
    say('daemons and engines are there')
    return pair
  }

  private constructor(
    processes: Processes,
    kind: 'cuda' | 'host',
    layout: Layout,
    { flags, engineFlags, env }: Required<PairOptions>,
    port: number,
  ) {
    this.layout = layout
    this.kind = kind
    this.processes = processes
    this.dir = mkdtempSync(join(tmpdir(), 'ckpt-gpu-cluster-'))
    removeAtExit(this.dir)
    this.leaderAddress = `127.0.0.1:${port}`
    this.tokenFile = join(this.dir, 'token')
    writeFileSync(this.tokenFile, `${crypto.randomUUID()}${crypto.randomUUID()}\n`, { mode: 0o600 })
    const daemonAt = (nodeRank: number) =>
      new Daemon({
        dir: join(this.dir, `node-${nodeRank}`),
        nodeRank,
        ranks: layout.ranks[nodeRank] as number,
        devices: devicesOf(layout, kind, nodeRank),
        leader: this.leaderAddress,
        tokenFile: this.tokenFile,
        flags,
        env: { ...environmentOf(layout, nodeRank), ...env },
      })
    const engineAt = (node: number) => {
      const socket = join(this.dir, `engine-${node}.sock`)
      const devices = devicesOf(layout, kind, node)
      const ranks = ranksOf(layout, node)
      return new Engine(`engine ${node}`, socket, devices, ranks, engineFlags)
    }
    this.daemons = [daemonAt(0), daemonAt(1)]
    this.engines = [engineAt(0), engineAt(1)]
  }

  get leader(): Daemon {
    return this.daemons[0]
  }

  get follower(): Daemon {
    return this.daemons[1]
  }

  /** Until both daemons know each other. */
  async joined(): Promise<void> {
    const [mine, theirs] = this.layout.ranks
    await until('the daemons to join', JOIN_MS, async () => {
      const { ranks } = await this.leader.client.status()
      const { cluster } = await this.follower.client.status()
      return ranks.length === mine + theirs && cluster?.first_rank !== undefined
    })
  }

  /** Both versions, as `parts-1` and `parts-2`: each daemon has its part. */
  async registerParts({ both }: TestVersions): Promise<void> {
    for (const { name, parts } of both) {
      await Promise.all(
        this.daemons.map(({ client, nodeRank }) =>
          client.register(`parts-${name}`, { files: [...(parts[nodeRank] ?? [])], version: name }),
        ),
      )
    }
  }

  /** Both versions, as `whole-1` and `whole-2`: the leader has them alone. */
  async registerWhole({ both }: TestVersions): Promise<void> {
    for (const { name, parts } of both) {
      await this.leader.client.register(`whole-${name}`, { files: parts.flat(), version: name })
    }
  }

  /** Of these engines, by all ranks unless the request names some. */
  async update(
    checkpoint: string,
    engines: readonly Engine[],
    request: Partial<UpdateRequest> & { timeout: number },
  ): Promise<Seen> {
    const beganMs = performance.now()
    const targets = engines.map(({ target }) => target)
    const all = { engines: targets, mode: 'pipelined' as const, ...request }
    const report = await this.leader.client.update(checkpoint, all)
    return { report, seconds: (performance.now() - beganMs) / 1000 }
  }
}

/** What these engines hold, against the files. */
export async function compareAll(
  versions: TestVersions,
  version: Version,
  engines: readonly Engine[],
): Promise<Compared> {
  let comparedBytes = 0
  let wrongBytes = 0
  for (const engine of engines) {
    const { length } = engine.ranks
    const one = await versions.compare(version, await engine.weights(), length)
    comparedBytes += one.comparedBytes
    wrongBytes += one.wrongBytes
  }
  return { comparedBytes, wrongBytes }
}
