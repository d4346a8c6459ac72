/** The follower is killed in the middle of a broadcast: the leader answers, goes on without it, and with it when it is back. */
import { CkptError, type Failure } from '@ckpt/core'
import { until } from '../../test/support/until.ts'
import { firstLayout } from './broadcasts.ts'
import { parseLayout } from './layout.ts'
import { compareAll, Pair, type Seen } from './pair.ts'
import { describe, type Run, type Step, updateSeconds } from './steps.ts'
import type { Version } from './versions.ts'

const NAME = 'model'
/** For the leader to launch what then waits for the follower. */
const LAUNCH_MS = 500
const REACH_MS = 15_000
/** Of an update after its deadline. */
const AFTER_SECONDS = 2
/** List that the follower's engine does not answer. */
const HELD = 1

export function lossSteps(run: Run): Step[] {
  const { options } = run
  // of 2+2 the survivors are two, which make a communicator of their own
  const layouts = options.layouts ?? [firstLayout(run), parseLayout('2+2')]
  return layouts.map((layout) => ({
    part: 'c',
    name: `${layout.name}, follower killed`,
    async work(place) {
      const flags = ['--broadcast', 'nccl', ...smallRing(options.mib)]
      const pair = await Pair.start(place, options.devices, layout, { flags })
      const loss = new Loss(run, pair)
      await loss.whole('before')
      place.say('an update begins in which the follower is killed')
      await loss.strike()
      place.say('an update of the survivors begins')
      await loss.survivors()
      place.say('the follower is started again')
      await loss.bringBack()
      await loss.whole('with all again')
    },
  }))
}

/** The leader cannot launch everything while the follower's engine stands still. */
function smallRing(mib: number): string[] {
  const ringMib = Math.max(8, 2 * Math.floor(mib / 8))
  return ['--ring-gib', String(ringMib / 1024), '--bucket-mib', String(ringMib / 4)]
}

class Loss {
  readonly #run: Run
  readonly #pair: Pair
  #registered = 0

  constructor(run: Run, pair: Pair) {
    this.#run = run
    this.#pair = pair
  }

  #named(what: string): string {
    return `${this.#pair.layout.name}, ${what}`
  }

  /** The parts of each of these nodes, by the daemon that it is said for. */
  async #register(version: Version, nodes: readonly (readonly number[])[]): Promise<void> {
    const label = `${++this.#registered}`
    const registered = nodes.map(async (parts, node) => {
      if (parts.length === 0) return
      const files = parts.flatMap((part) => version.parts[part] ?? [])
      const request = { files, version: label, replace: true }
      await this.#pair.daemons[node]?.client.register(NAME, request)
    })
    await Promise.all(registered)
  }

  async whole(when: string): Promise<void> {
    const { versions, results } = this.#run
    const version = versions.next()
    await this.#register(version, [[0], [1]])
    const { engines } = this.#pair
    const seen = await this.#pair.update(NAME, engines, { timeout: updateSeconds(this.#run) })
    results.update('c', this.#named(when), seen, await compareAll(versions, version, engines))
  }

  async strike(): Promise<void> {
    const { versions, results } = this.#run
    await this.#register(versions.next(), [[0], [1]])
    const [, engine] = this.#pair.engines
    await engine.arm(`hold@${HELD}`)
    const timeout = Math.min(10, updateSeconds(this.#run))
    const beganMs = performance.now()
    const answer = this.#pair.update(NAME, this.#pair.engines, { timeout })
    const ended = answer.then(
      (seen: Seen) => ({ seen, error: null }),
      (error: unknown) => ({ seen: null, error }),
    )
    await Promise.race([engine.holds(), ended])
    await Bun.sleep(LAUNCH_MS)
    const struckMs = performance.now()
    await this.#pair.follower.child.kill()
    const { error } = await ended
    const endMs = performance.now()
    const afterSeconds = (endMs - struckMs) / 1000
    requireNamed(error, this.#pair.engines[1].ranks)
    if ((endMs - beganMs) / 1000 > timeout + AFTER_SECONDS) {
      throw new Error(`the leader has answered after ${((endMs - beganMs) / 1000).toFixed(1)} s`)
    }
    results.fact('c', this.#named('kill -9 to the answer'), afterSeconds, describe(error))
  }

  async survivors(): Promise<void> {
    const { versions, results } = this.#run
    const version = versions.next()
    await this.#register(version, [[0, 1], []])
    const { engines } = this.#pair
    const request = { require: 'survivors' as const, timeout: updateSeconds(this.#run) }
    const seen = await this.#pair.update(NAME, engines, request)
    const left = seen.report.engines.find(({ ranks }) => ranks[0] === engines[1].ranks[0])
    if (left?.error?.code !== 'node_lost') throw new Error('nobody is told of whom was left out')
    const compared = await compareAll(versions, version, [engines[0]])
    results.update('c', this.#named('of the survivors'), seen, compared)
  }

  async bringBack(): Promise<void> {
    const { follower, engines, processes } = this.#pair
    await engines[1].arm()
    const beganMs = performance.now()
    await processes.start(follower.child)
    await this.#pair.joined()
    const seconds = (performance.now() - beganMs) / 1000
    const what = this.#named('follower started again')
    this.#run.results.fact('c', what, seconds, 'until it has joined')
    // an engine that is in an update still refuses the next
    await until('the engine to leave the update', REACH_MS, async () => {
      return (await engines[1].weights()).ranks.length > 0
    })
  }
}

/** @throws Error unless it says that a daemon is lost, and whose ranks */
function requireNamed(error: unknown, ranks: readonly number[]): void {
  if (error === null) throw new Error('the update has gone through without the follower')
  const failure: Failure | null = error instanceof CkptError ? error.failure : null
  const named = failure?.rank !== undefined && ranks.includes(failure.rank)
  if (failure?.code === 'node_lost' && named) return
  throw new Error(`not 'node_lost' with a rank of the follower: ${describe(error)}`)
}
