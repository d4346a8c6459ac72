/** One case of the matrix: who is lost, how and when; what the others must then do. */
import type { ErrorCode, Phase } from '@ckpt/core'
import type { TestVersion } from './checkpoint.ts'
import type { Child } from './child.ts'
import { type Answer, NAME, type TestCluster } from './cluster.ts'
import type { TestEngine } from './engine.ts'
import type { Way } from './kinds.ts'
import { growthOf, HOLDINGS, type Holdings, holdingsOf } from './holdings.ts'
import { factsOf, type Hold, holdAt, type Place, type PlaceFacts } from './places.ts'
import { until } from '../support/until.ts'

export interface MatrixCase {
  readonly way: Way
  readonly who: 'leader' | 'follower' | 'rank' | 'engine'
  readonly how: 'kill' | 'stop' | 'cut' | 'throw' | 'die' | 'hang'
  readonly when: Place
}

/** The node whose daemon, rank or engine is lost, if it is not the leader. */
const VICTIM = 1
/** Seconds of an update that is to fail. */
const TIMEOUT_S = 9
const LOST_MS = 5000
/** Of an update after its deadline, or after the loss that ends it was seen. */
const AFTER_MS = 2000
/** What two cores that do everything at once add to it. */
const SLACK_MS = 1000
/** What is kept for a moment, as connections of ranks that idle and of requests, is closed by then. */
const CLOSED_MS = 8000
/**
 * What a Worker has that does not come back out of a native call, beside the one that replaces it: its event loop and its ZeroMQ
 * context, UCX's connections and the threads of its streams and of UCX, and the ring and the memory that the call may still use.
 */
const HUNG = { descriptors: 32, threads: 8, mappings: 4 } as const satisfies Counts
/**
 * UCX's connections to readers of other daemons that have left: an owner does not close its end, since UCX 1.13 has crashed where both
 * ends were closed at once. Two sockets for each of two readers, and again where an update is tried a second time.
 */
const LEFT = { descriptors: 8, threads: 0, mappings: 0 } as const satisfies Counts
const NONE: Counts = { descriptors: 0, threads: 0, mappings: 0 }

type Counts = Readonly<Record<keyof Holdings, number>>

interface Expected {
  readonly codes: readonly ErrorCode[]
  readonly phases: readonly Phase[]
  /** From the strike, or from the beginning where the update's deadline ends it. */
  readonly limitMs: number
  readonly from: 'strike' | 'beginning'
}

export function nameOf({ way, who, how, when }: MatrixCase): string {
  return `${way} ${who} ${how} ${when}`
}

/** @throws Error that says what was not as it must be */
export async function runCase(cluster: TestCluster, one: MatrixCase): Promise<void> {
  const run = new CaseRun(cluster, one)
  await run.prepare()
  await run.strike()
  await run.checkEnd()
  await run.checkWithout()
  await run.bringBack()
  await run.checkBack()
}

class CaseRun {
  readonly #cluster: TestCluster
  readonly #case: MatrixCase
  readonly #facts: PlaceFacts
  readonly #node: number
  /** The other nodes. The last one keeps the update where the node is lost meanwhile. */
  readonly #others: readonly number[]
  readonly #id: string
  /** By process: the case may replace it by another one, which has nothing to be compared with. */
  readonly #before = new Map<number, Holdings>()
  #holds: readonly Hold[] = []
  #answer: Promise<Answer> | null = null
  #struckMs = 0
  #beganMs = 0
  /** By rank: as the update's state tells it. */
  readonly #reported = new Map<number, boolean>()
  /** Engines that stood still when they were to be paused. */
  readonly #serving = new Set<number>()

  constructor(cluster: TestCluster, one: MatrixCase) {
    this.#cluster = cluster
    this.#case = one
    this.#facts = factsOf(one.way, one.when)
    this.#node = one.who === 'leader' ? 0 : VICTIM
    this.#others = [...cluster.daemons.keys()].filter((node) => node !== this.#node)
    this.#id = cluster.nextUpdateId()
  }

  async prepare(): Promise<void> {
    await this.#cluster.register()
    for (const { pid } of this.#children) this.#before.set(pid, holdingsOf(pid))
    if (this.#case.who === 'rank') return
    this.#holds = await Promise.all(
      this.#keepers.map(([facts, node]) => holdAt(this.#cluster, facts, node)),
    )
  }

  get #children(): readonly Child[] {
    return [...this.#cluster.daemons, ...this.#cluster.engines].map(({ child }) => child)
  }

  /** What keeps the update there, and where. */
  get #keepers(): [PlaceFacts, number][] {
    const { elsewhere, ...facts } = this.#facts
    if (elsewhere === undefined) return [[facts, this.#holder]]
    const other: [PlaceFacts, number] = [{ ...facts, engineFault: elsewhere }, this.#witness]
    return facts.engineFault === undefined ? [other] : [other, [facts, this.#node]]
  }

  get #witness(): number {
    return this.#others.at(-1) as number
  }

  /** The node that keeps the update there. */
  get #holder(): number {
    const { who, when } = this.#case
    const { phase, engineFault } = this.#facts
    if (this.#stands) return this.#node
    // what is in the hands of the victim's engine shows when that is lost
    if (engineFault !== undefined && (who === 'engine' || when === 'post')) return this.#node
    // it is the leader who gathers
    return phase === 'gather' ? this.#cluster.daemons.length - 1 : this.#witness
  }

  /** It is lost before it has said what it holds, so that nobody else has to keep the update there. */
  get #stands(): boolean {
    const { who, when } = this.#case
    return who === 'follower' && when === 'gather'
  }

  async strike(): Promise<void> {
    const { who, how } = this.#case
    const daemon = this.#cluster.daemon(this.#node)
    if (how === 'throw' || how === 'die' || how === 'hang') {
      daemon.arm(how, this.#facts.step as never)
    }
    this.#beganMs = performance.now()
    const asked = who === 'leader' ? VICTIM : 0
    this.#answer = this.#cluster.update(asked, this.#id, { timeout: TIMEOUT_S, open_timeout: 8 })
    this.#answer.catch(() => {}) // awaited in checkEnd
    if (who === 'rank') await daemon.struck()
    await Promise.all(this.#holds.map((hold) => hold.reached(this.#id)))
    this.#struckMs = performance.now()
    if (who === 'rank') return
    const { child } = who === 'engine' ? this.#cluster.engine(this.#node) : daemon
    if (how === 'kill') await child.kill()
    if (how === 'stop') child.signal('SIGSTOP')
    if (how === 'cut') await this.#cluster.network.cut(this.#node)
    await this.#goOn()
  }

  /** The update goes on where it was held when it is known who is gone. */
  async #goOn(): Promise<void> {
    const { who, how } = this.#case
    if (this.#stands) {
      if (how === 'cut') await this.#release()
      return
    }
    if (who !== 'engine') {
      const [watcher, gone] = who === 'leader' ? [VICTIM, 0] : [0, this.#node]
      await until(`node ${gone} to be missed`, LOST_MS + AFTER_MS, async () => {
        return !(await this.#cluster.peers(watcher)).includes(gone)
      })
    }
    await this.#release()
  }

  async #release(): Promise<void> {
    // a dead engine holds nothing, one that stands still does not hear of it
    const lost = this.#case.who === 'engine' ? this.#node : null
    const holds = this.#holds.filter(({ engine }) => engine === null || engine !== lost)
    await Promise.all(holds.map((hold) => hold.release()))
  }

  get #expected(): Expected {
    const { way, who, how, when } = this.#case
    const { phase } = this.#facts
    const soon = { limitMs: AFTER_MS + SLACK_MS, from: 'strike' } as const
    const late = { limitMs: LOST_MS + AFTER_MS + SLACK_MS, from: 'strike' } as const
    const atDeadline = {
      limitMs: TIMEOUT_S * 1000 + AFTER_MS + SLACK_MS,
      from: 'beginning',
    } as const
    if (who === 'leader') {
      return { codes: ['leader_lost'], phases: [], ...(how === 'kill' ? soon : late) }
    }
    if (who === 'follower') {
      return { codes: ['node_lost'], phases: [phase], ...(how === 'kill' ? soon : late) }
    }
    if (who === 'rank') {
      if (how === 'hang') return { codes: ['update_timeout'], phases: [phase], ...atDeadline }
      // of the release it knows when the engine's worker has been told
      const phases: Phase[] = when === 'release' ? ['transfer', 'release'] : [phase]
      return { codes: ['rank_failed'], phases, ...soon }
    }
    const codes = ['engine_unreachable', 'engine_disconnected', 'engine_failed'] as const
    const { killed = [phase], stopped = [phase] } = this.#facts
    if (how === 'kill') {
      // before the update has begun with it, it may come back; where ranks open it may not have been looked at
      const early = way === 'ring' || when === 'gather' || when === 'open'
      const waits = killed[0] === 'open' && early
      return { codes, phases: killed, ...soon, ...(waits && atDeadline) }
    }
    return { codes: [...codes, 'update_timeout', 'engine_timeout'], phases: stopped, ...atDeadline }
  }

  async checkEnd(): Promise<void> {
    const { codes, phases, limitMs, from } = this.#expected
    const { status, failure } = await (this.#answer as Promise<Answer>)
    const tookMs = performance.now() - (from === 'strike' ? this.#struckMs : this.#beganMs)
    if (failure === null) throw new Error(`the update ended with ${status}`)
    const told = JSON.stringify(failure)
    if (!codes.includes(failure.code)) throw new Error(`not ${codes.join(' or ')}: ${told}`)
    if (phases.length > 0) {
      if (failure.phase === undefined || !phases.includes(failure.phase)) {
        throw new Error(`not in phase ${phases.join()}: ${told}`)
      }
      if (failure.rank !== this.#node) throw new Error(`not of rank ${this.#node}: ${told}`)
    }
    if (tookMs > limitMs) {
      throw new Error(`the client was told after ${Math.round(tookMs)} ms: ${told}`)
    }
    if (this.#case.who !== 'leader') await this.#takeReport()
    await this.#checkEngines((rank) => rank !== this.#node)
  }

  async #takeReport(): Promise<void> {
    const state = await this.#cluster.state(this.#id)
    for (const { ranks, torn, serving_torn: serving } of state?.engines ?? []) {
      this.#reported.set(ranks[0] as number, torn)
      if (serving) this.#serving.add(ranks[0] as number)
    }
  }

  /** None of them is in the update any more, and what they say of themselves is what was reported. */
  async #checkEngines(which: (rank: number) => boolean): Promise<void> {
    for (const engine of this.#cluster.engines) {
      if (!which(engine.rank) || !engine.child.alive) continue
      const { torn } = await engine.weights(AFTER_MS + SLACK_MS)
      const reported = this.#reported.get(engine.rank)
      if (
        reported !== undefined &&
        reported !== torn &&
        !(reported && this.#isUnsure(engine.rank))
      ) {
        throw new Error(`engine ${engine.rank}: torn is ${torn}, but was reported as ${reported}`)
      }
      if (torn && !this.#isExcused(engine.rank)) await this.#isStopped(engine)
    }
  }

  #isUnsure(rank: number): boolean {
    return rank === this.#node && this.#facts.unsure?.some((who) => who === this.#case.who) === true
  }

  /**
   * It could not be paused, which was reported; or its daemon has died as the leader: whoever comes in its place marks the engine, and
   * does not know whether it is whole.
   */
  #isExcused(rank: number): boolean {
    const { who, how } = this.#case
    if (who === 'engine') return this.#serving.has(rank)
    return who === 'leader' && how === 'kill' && rank === 0
  }

  async #isStopped(engine: TestEngine): Promise<void> {
    const what = `engine ${engine.rank}, which is torn, to be paused`
    await until(what, AFTER_MS + SLACK_MS, () => engine.isPaused())
  }

  /** While it is gone. */
  async checkWithout(): Promise<void> {
    const { who } = this.#case
    const cluster = this.#cluster
    if (who === 'leader') {
      for (const node of this.#others) {
        const { failure, status } = await cluster.update(node, cluster.nextUpdateId())
        if (status !== 503 || failure?.code !== 'leader_lost') {
          throw new Error(`node ${node} answers ${status} ${JSON.stringify(failure)}`)
        }
        const { body } = await cluster.daemon(node).ask('GET', '/v1/checkpoints')
        if (body.checkpoints[0]?.name !== NAME) throw new Error(`node ${node} has lost ${NAME}`)
      }
    }
    if (who !== 'follower') return
    const id = cluster.nextUpdateId()
    const refused = await cluster.update(0, id)
    if (refused.failure?.code !== 'node_lost') {
      throw new Error(`without node ${this.#node}: ${JSON.stringify(refused)}`)
    }
    const version = await this.#registerWithout()
    const more = { require: 'survivors' }
    const { status, failure, engines } = await cluster.update(0, cluster.nextUpdateId(), more)
    if (status !== 200) throw new Error(`of the survivors: ${JSON.stringify(failure)}`)
    const left = engines.find(({ ranks }) => ranks.includes(this.#node))
    if (left?.error?.code !== 'node_lost') throw new Error('nobody is told of whom was left out')
    for (const rank of this.#others) version.compare(await cluster.engine(rank).weights(AFTER_MS))
  }

  /** The witness has what only the lost one had before. */
  async #registerWithout(): Promise<TestVersion> {
    const version = this.#cluster.makeVersion()
    const files = (node: number) => (node === this.#witness ? version.files : undefined)
    await Promise.all(
      this.#others.map((node) => this.#cluster.registerAt(node, version, files(node))),
    )
    return version
  }

  async bringBack(): Promise<void> {
    const { who, how } = this.#case
    const daemon = this.#cluster.daemon(this.#node)
    const { child } = who === 'engine' ? this.#cluster.engine(this.#node) : daemon
    daemon.disarm()
    if (how === 'kill') await child.start()
    if (how === 'stop') child.signal('SIGCONT')
    if (how === 'cut') await this.#cluster.network.mend(this.#node)
    for (const engine of this.#cluster.engines) await engine.arm()
    await this.#cluster.joined()
    if (who === 'engine' && how === 'kill') return this.#checkFresh()
    // what the others hold may have come since
    await this.#checkEngines((rank) => rank === this.#node)
  }

  /** Of an engine that has died nobody but the report tells what it had. */
  #checkFresh(): void {
    const torn = this.#facts.tears ?? false
    const reported = this.#reported.get(this.#node)
    if (reported !== torn) throw new Error(`the dead engine was reported as torn: ${reported}`)
  }

  /** With all again. */
  async checkBack(): Promise<void> {
    const cluster = this.#cluster
    for (const mode of this.#modesBack) {
      const version = await cluster.register()
      const { status, failure } = await cluster.update(0, cluster.nextUpdateId(), { mode })
      if (status !== 200) throw new Error(`with all again, ${mode}: ${JSON.stringify(failure)}`)
      for (const engine of cluster.engines) {
        version.compare(await engine.weights(AFTER_MS))
        if (await engine.isPaused()) throw new Error(`engine ${engine.rank} is still paused`)
      }
    }
    const { engines } = await cluster.status(0)
    const torn = engines.filter((engine) => engine.torn).map(({ url }) => url)
    if (torn.length > 0) throw new Error(`marked as torn: ${torn.join()}`)
    await this.#checkLeaks()
  }

  /** An engine that is new has nothing to write to, and a leader that is new knows of no engine that can be written. */
  get #modesBack(): readonly string[] {
    const { way, who, how } = this.#case
    const { mode } = this.#cluster.kind
    const isNew = how === 'kill' && who !== 'follower'
    return way === 'direct' && isNew ? ['pipelined', mode] : [mode]
  }

  async #checkLeaks(): Promise<void> {
    const cluster = this.#cluster
    for (const { nodeRank, oldSockets } of cluster.daemons) {
      if (oldSockets.length > 0) throw new Error(`node ${nodeRank} keeps ${oldSockets.join()}`)
    }
    const { leftMemory } = cluster
    if (leftMemory.length > 0) throw new Error(`left in /dev/shm: ${leftMemory.join()}`)
    for (const { nodeRank } of cluster.daemons) {
      const { quarantined_bytes: bytes } = (await cluster.status(nodeRank)).memory
      if (bytes !== 0) throw new Error(`node ${nodeRank} keeps ${bytes} bytes in quarantine`)
    }
    let grown: string[] = []
    await until('nobody to hold more than before', CLOSED_MS, () => {
      grown = this.#children.flatMap((child) => this.#grown(child))
      return grown.length === 0
    }).catch(() => {
      throw new Error(grown.join('; '))
    })
  }

  #grown({ name, pid }: Child): string[] {
    const before = this.#before.get(pid)
    if (before === undefined) return []
    const hung = this.#case.how === 'hang' && pid === this.#cluster.daemon(this.#node).child.pid
    const allowed = hung ? HUNG : this.#case.way === 'direct' ? LEFT : NONE
    const now = holdingsOf(pid)
    return HOLDINGS.flatMap((what) => {
      const { more, kinds } = growthOf(before[what], now[what])
      return more > allowed[what] ? [`${name} has ${more} more ${what} than before: ${kinds}`] : []
    })
  }
}
