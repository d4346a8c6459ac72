/** A device is lost in the middle of an update: its daemon tells, lets the engines go, ends with status 4 and is started again. */
import { afterAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import type { FaultStep } from '../../packages/server/src/daemon/rank/injected.ts'
import { withoutUcx } from '../support/ucx.ts'
import { until } from '../support/until.ts'
import { type Answer, TestCluster } from './cluster.ts'
import { type ClusterKind, KINDS, type Way } from './kinds.ts'
import { factsOf } from './places.ts'

setDefaultTimeout(120_000)

const WAYS = ['ring', 'direct'] as const
/** Of two daemons, each with a supervisor. */
const kindOf = (way: Way): ClusterKind => {
  const { shape, serve, ...kind } = KINDS[way]
  const halves = { ...shape, held: [[0], [1]] }
  return { ...kind, nodes: 2, shape: halves, serve: [...serve, '--supervise'] }
}
/** What the supervisor says of status 4, and of no other. */
const STARTS_AGAIN = 'ckpt: the device was lost, starting the daemon again'
/** An update tells within 2 s of a failure. */
const TOLD_MS = 3000
/** Its own part of the update ends, and it closes. */
const ENDS_MS = 10_000
/** A second later it is started again. */
const BACK_MS = 20_000
const ENGINE_MS = 3000

describe.skipIf(withoutUcx !== null).each(WAYS)(
  'a device that is lost amid an update: %s',
  (way) => {
    let cluster: TestCluster | null = null

    afterAll(async () => {
      expect((await cluster?.end()) ?? []).toEqual([])
    })

    test.each([
      ['a follower', 1],
      ['the leader', 0],
    ])('of %s', async (_, node) => {
      cluster ??= await TestCluster.start(kindOf(way))
      const run = new LostDevice(cluster, node)
      await run.lose(factsOf(way, 'middle').step as FaultStep)
      await run.checkEngines()
      await run.checkOthers()
      await run.back()
      await run.updateAll(way)
    })
  },
)

class LostDevice {
  readonly #cluster: TestCluster
  readonly #node: number
  /** Of each daemon: what it had said before. */
  readonly #said: readonly number[]

  constructor(cluster: TestCluster, node: number) {
    this.#cluster = cluster
    this.#node = node
    this.#said = cluster.daemons.map(({ child }) => child.output.length)
  }

  #saysOf(node: number): string {
    return this.#cluster.daemon(node).child.output.slice(this.#said[node])
  }

  /** The client, who has asked the daemon that is lost, is told whose it was, and when. */
  async lose(step: FaultStep): Promise<void> {
    const cluster = this.#cluster
    await cluster.register()
    const id = cluster.nextUpdateId()
    const daemon = cluster.daemon(this.#node)
    daemon.arm('lose', step)
    const answer = cluster.update(this.#node, id)
    await Promise.race([daemon.struck(), answer])
    const struckMs = performance.now()
    const { status, failure } = await answer
    expect(performance.now() - struckMs).toBeLessThan(TOLD_MS)
    expect(failure).toMatchObject({ code: 'device_lost', rank: this.#node, phase: 'transfer' })
    expect(failure?.message).toContain(`injected at ${step}`)
    expect(status).toBe(500)
    daemon.disarm()
    if (this.#node !== 0) await this.#checkReport(id)
  }

  async #checkReport(id: string): Promise<void> {
    const { engines = [] } = (await this.#cluster.state(id)) ?? {}
    expect(engines.map(({ torn }) => torn)).toEqual(engines.map(() => true))
    expect(engines.filter((one) => one.serving_torn)).toEqual([])
  }

  /** None of their workers waits for the update any more, and none of them serves what it has of it. */
  async checkEngines(): Promise<void> {
    for (const engine of this.#cluster.engines) {
      expect((await engine.weights(ENGINE_MS)).torn).toBe(true)
      const what = `engine ${engine.rank}, which is torn, to be paused`
      await until(what, ENGINE_MS, () => engine.isPaused())
    }
  }

  /** It ends with status 4, and what the others then say of it. */
  async checkOthers(): Promise<void> {
    const cluster = this.#cluster
    await until('the daemon to end', ENDS_MS, () => this.#saysOf(this.#node).includes(STARTS_AGAIN))
    const watcher = this.#node === 0 ? 1 : 0
    await until('it to be missed', ENDS_MS, async () => {
      return !(await cluster.peers(watcher)).includes(this.#node)
    })
    const { failure }: Answer = await cluster.update(watcher, cluster.nextUpdateId())
    expect(failure?.code).toBe(this.#node === 0 ? 'leader_lost' : 'node_lost')
  }

  /** By itself; the others have stayed. */
  async back(): Promise<void> {
    const cluster = this.#cluster
    await until('it to be back', BACK_MS, () => this.#saysOf(this.#node).includes('ready at'))
    await cluster.joined()
    for (const { nodeRank } of cluster.daemons) {
      if (nodeRank !== this.#node) expect(this.#saysOf(nodeRank)).not.toContain(STARTS_AGAIN)
    }
  }

  /** A leader that is new knows of no engine that can be written directly. */
  async updateAll(way: Way): Promise<void> {
    const cluster = this.#cluster
    const { mode } = cluster.kind
    const modes = way === 'direct' && this.#node === 0 ? ['pipelined', mode] : [mode]
    for (const one of modes) {
      const version = await cluster.register()
      const { failure } = await cluster.update(0, cluster.nextUpdateId(), { mode: one })
      expect(failure).toBeNull()
      for (const engine of cluster.engines) {
        version.compare(await engine.weights(ENGINE_MS))
        expect(await engine.isPaused()).toBe(false)
      }
    }
  }
}
