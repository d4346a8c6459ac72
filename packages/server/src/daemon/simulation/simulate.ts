import { CkptError, type Failure, type UpdateReport } from '@ckpt/core'
import { makeSpec } from '../updates/spec.ts'
import { CHECKPOINT } from './checkpoint.ts'
import type { DirectCounts } from './counts.ts'
import { checkFailure, checkLeft, checkMarks, checkSuccess, checkTorn } from './invariants.ts'
import { mustBeDirect, withDirect } from './direct-scenario.ts'
import { Random } from './random.ts'
import { type Fault, makeScenario, type Scenario } from './scenario.ts'
import { SimulatedTime } from './time.ts'
import type { Witness } from './violation.ts'
import { World } from './world.ts'

/** How one seed has ended. */
export interface SeedResult {
  readonly seed: number
  /** Of its first update: `done`, or the code of its failure. */
  readonly outcome: string
  /** What must never happen and did; null: nothing. */
  readonly violation: string | null
  readonly updates: number
  readonly direct: DirectCounts
}

export interface SimulateOptions {
  /** Takes a line for everything that happens. */
  readonly trace?: (line: string) => void
  /** In place of what the seed would have. */
  readonly change?: ((scenario: Scenario) => Scenario) | undefined
  /** No update is direct: what a seed was before there were direct ones. */
  readonly ringOnly?: boolean
}

export type Outcome =
  | { readonly report: UpdateReport; readonly failure: null }
  | { readonly report: null; readonly failure: Failure }

type UpdateMode = Scenario['mode'] | 'direct'

/** An update ends within its timeout and this. */
const AFTER_DEADLINE_MS = 2000
const START_LIMIT_MS = 20_000
/** What faults leave is over by then: see `STAY_MS` of the sockets that are kept. */
const SETTLE_MS = 120_000
const HEAL_MS = 9000
const CLEAN_TIMEOUT_S = 120
/** What a client is told of which the daemon has gone. */
const LEADER_DIED: Failure = { code: 'daemon_unreachable', message: 'the leader has died' }
/** Tells the draws of direct updates from those of everything else. */
const DIRECT = 0x44495245
/** After these a worker of an engine may wait for somebody who is not there any more. */
const LEAVE_WORKERS: readonly Fault['type'][] = [
  'worker',
  'thread_dies',
  'daemon_dies',
  'cut',
  'dark',
]
const OF_DAEMONS: readonly Fault['type'][] = ['daemon_dies', 'cut', 'dark']
const REFUSED: readonly Failure['code'][] = ['device_memory_exhausted', 'not_supported']

/** Two updates of one seed: one that is disturbed, and one that is not and must succeed. */
export function simulateSeed(seed: number, options: SimulateOptions = {}): SeedResult {
  const time = new SimulatedTime()
  const restore = time.install()
  const simulation = new Simulation(seed, time, options)
  try {
    return simulation.run()
  } finally {
    restore()
  }
}

class Simulation implements Witness {
  readonly #seed: number
  readonly #time: SimulatedTime
  readonly #options: SimulateOptions
  readonly #random: Random
  readonly #scenario: Scenario
  #violation: string | null = null
  #updates = 0
  readonly #direct: DirectCounts = { done: 0, failed: 0, torn: 0 }

  constructor(seed: number, time: SimulatedTime, options: SimulateOptions) {
    this.#seed = seed
    this.#time = time
    this.#options = options
    this.#random = new Random(seed)
    // draws of its own, so that it changes nothing of the others
    const ring = makeScenario(this.#random)
    const scenario = options.ringOnly ? ring : withDirect(ring, new Random(seed ^ DIRECT))
    this.#scenario = options.change?.(scenario) ?? scenario
  }

  violated(message: string): void {
    this.trace(() => `VIOLATION ${message}`)
    this.#violation ??= `${message} (at ${this.#time.nowMs.toFixed(3)} ms)`
  }

  trace(line: () => string): void {
    const { trace } = this.#options
    if (trace !== undefined) trace(`${this.#time.nowMs.toFixed(3).padStart(12)} ${line()}`)
  }

  run(): SeedResult {
    let outcome = 'none'
    try {
      const first = this.#steps()
      outcome = first === null ? 'none' : (first.failure?.code ?? 'done')
    } catch (error) {
      this.violated(`what is thrown: ${error instanceof Error ? error.stack : String(error)}`)
    }
    const violation = this.#violation
    const direct = this.#direct
    return { seed: this.#seed, outcome, violation, updates: this.#updates, direct }
  }

  #steps(): Outcome | null {
    this.trace(() => JSON.stringify(this.#scenario))
    const world = new World(this.#time, this.#random, this, this.#scenario)
    try {
      return this.#updatesOf(world)
    } finally {
      for (const daemon of world.daemons) this.#time.as(daemon.life, () => daemon.close())
    }
  }

  #updatesOf(world: World): Outcome | null {
    world.start()
    if (!this.#until(() => world.complete, START_LIMIT_MS)) {
      this.violated('the daemons do not come together')
      return null
    }
    const { faults, direct, mode } = this.#scenario
    const ready = direct !== null && this.#undisturbed(world, direct.first)
    if (this.#violation !== null) return null
    world.register()
    const first = this.#update(world, faults, direct?.disturbed ?? mode)
    if (first === null || this.#violation !== null) return first
    if (ready && first.failure !== null && mustBeDirect(this.#scenario)) {
      const { message, code } = first.failure
      this.violated(`nothing stands against a direct update, and it fails: ${message} (${code})`)
    }
    this.#heal(world, first)
    if (this.#violation !== null) return first
    const healed = this.#undisturbed(world, direct?.last ?? mode)
    if (this.#violation !== null) return first
    const check = () => checkLeft(world) ?? (healed ? checkMarks(world) : null)
    this.#until(() => check() === null, SETTLE_MS)
    const left = check()
    if (left !== null) this.violated(left)
    return first
  }

  /** Whether it was made; what no update can have is no violation. */
  #undisturbed(world: World, mode: UpdateMode): boolean {
    world.register()
    const ended = this.#update(world, null, mode)
    if (!ended?.failure) return ended !== null
    const { code, message, phase } = ended.failure
    // of sizes and ranks that no update can have, or of engines that have to take one through the ring first
    const isRefused = phase === 'plan' && REFUSED.includes(code)
    if (!isRefused) this.violated(`the next update fails: ${message} (${code})`)
    else if (mode === 'direct') return this.#undisturbed(world, 'auto')
    return false
  }

  #until(condition: () => boolean, withinMs: number): boolean {
    const limitMs = this.#time.nowMs + withinMs
    return this.#time.run(() => this.#violation !== null || condition(), limitMs)
  }

  /** @param faults null: nothing disturbs it */
  #update(world: World, faults: readonly Fault[] | null, mode: UpdateMode): Outcome | null {
    this.#updates++
    const id = `update-${this.#updates}`
    const short = faults?.some(({ type }) => type === 'short') ?? false
    const { timeoutS } = this.#scenario
    const usualS = faults === null ? CLEAN_TIMEOUT_S : timeoutS
    const timeout = short ? this.#random.between(0.05, 1.5) : usualS
    let outcome: Outcome | null = null
    const { queue } = world.leader
    for (const engine of world.engines) {
      engine.listsSent = 0
      engine.beginsSent = 0
      engine.ended = false
    }
    this.#disturb(world, faults ?? [], id)
    this.#time.as(world.leader.life, () => {
      try {
        const record = queue?.add(this.#spec(world, id, timeout, faults === null, mode), undefined)
        record?.done.then(
          (report) => (outcome = { report, failure: null }),
          (error) => (outcome = { report: null, failure: CkptError.wrap(error).failure }),
        )
      } catch (error) {
        outcome = { report: null, failure: CkptError.wrap(error).failure }
      }
    })
    const limitMs = timeout * 1000 + AFTER_DEADLINE_MS
    const { leader } = world
    this.#until(() => outcome !== null || !leader.life.alive, limitMs)
    if (outcome === null && !leader.life.alive) return { report: null, failure: LEADER_DIED }
    const ended = outcome as Outcome | null
    if (ended === null) {
      this.violated(`${id} does not end within ${limitMs} ms`)
      return null
    }
    this.trace(() => `${id}: ${JSON.stringify(ended.failure ?? 'done')}`)
    if (ended.failure === null) checkSuccess(world, ended.report.mode === 'direct', this)
    else checkFailure(ended.failure, this)
    this.#count(world, id, ended)
    const waysHold = (faults ?? []).every(({ type }) => !OF_DAEMONS.includes(type))
    checkTorn(world, id, ended, waysHold, this)
    return ended
  }

  #count({ engines, leader }: World, id: string, { report }: Outcome): void {
    if (report?.mode === 'direct') this.#direct.done++
    if (report !== null || !engines.some(({ beginsSent }) => beginsSent > 0)) return
    this.#direct.failed++
    if (engines.some(({ url }) => leader.tornBy(url) === id)) this.#direct.torn++
  }

  #spec(world: World, id: string, timeout: number, clean: boolean, mode: UpdateMode) {
    const { pause, openS, ranks: asked } = this.#scenario
    const engines = this.#scenario.engines.map(({ ranks }, i) => ({
      url: world.engines[i]?.url ?? '',
      ranks: [...ranks],
      engine: 'vllm' as const,
    }))
    const { leader, pool, parts } = world.leader
    const ranks = leader?.ranks ?? pool
    if (ranks === null) throw new Error('the leader has not started')
    const open_timeout = clean ? CLEAN_TIMEOUT_S : openS
    const request = {
      update_id: id,
      ranks: [...asked],
      engines,
      timeout,
      open_timeout,
      mode,
      pause,
    }
    return makeSpec(CHECKPOINT, request as never, parts.options, ranks)
  }

  #disturb(world: World, faults: readonly Fault[], id: string): void {
    for (const [i, engine] of world.engines.entries()) {
      engine.scripts = this.#scenario.engines[i]?.scripts ?? []
    }
    for (const fault of faults) {
      if (fault.type === 'worker') {
        const { engine, worker, script } = fault
        const one = world.engines[engine]
        if (one === undefined) continue
        one.scripts = one.scripts.with(worker, script)
        one.ended = script.fault?.kind === 'close' || script.direct?.kind === 'close'
      } else if (fault.type === 'copy') this.#failCopy(world, fault.node, fault.copy)
      else if ('atMs' in fault) this.#time.after(fault.atMs, () => this.#strike(world, fault, id))
    }
  }

  #failCopy(world: World, node: number, copy: number): void {
    const library = world.daemons[node]?.parts.library
    if (library === undefined) return
    let copies = 0
    library.copyFault = () => copies++ === copy
  }

  #strike(world: World, fault: Extract<Fault, { atMs: number }>, id: string): void {
    // the next update is to be undisturbed
    if (world.leader.queue?.runningId !== id) return
    this.trace(() => JSON.stringify(fault))
    switch (fault.type) {
      case 'abort': {
        const failure: Failure = { code: 'aborted', message: 'aborted on request' }
        const { queue, life } = world.leader
        return this.#time.as(life, () => void queue?.abort(id, failure))
      }
      case 'engine_restart':
        return world.engines[fault.engine]?.restart()
      case 'thread_dies':
        return threadOf(world, fault.rank)?.die(new Error('the thread has crashed'))
      case 'thread_stalls':
        return threadOf(world, fault.rank)?.stall(fault.forMs)
      case 'daemon_dies':
        return world.kill(fault.node)
      case 'cut':
        return world.cut(fault.node)
      case 'dark':
        return world.darken(fault.node)
    }
  }

  /** What people would do before they send the next update. */
  #heal(world: World, { failure }: Outcome): void {
    const { faults } = this.#scenario
    for (const { parts } of world.daemons) parts.library.copyFault = null
    const gentle = faults.every(({ type }) => type === 'abort' || type === 'copy')
    if (failure === null || gentle) this.#until(() => false, this.#random.between(0, 20))
    else this.#until(() => false, HEAL_MS)
    for (const [node, { life }] of world.daemons.entries()) if (!life.alive) world.restart(node)
    const mayWait = faults.some(({ type }) => LEAVE_WORKERS.includes(type))
    for (const engine of world.engines) {
      const stuck = !gentle && engine.isStuck
      if (stuck && !mayWait) this.violated(`a worker of ${engine.url} is still there`)
      if (stuck || world.leader.needsRestart(engine.url)) engine.restart()
    }
    if (!this.#until(() => world.complete, START_LIMIT_MS)) {
      this.violated('the daemons do not come together again')
    }
  }
}

function threadOf(world: World, rank: number) {
  let first = 0
  for (const { threads, parts } of world.daemons) {
    const count = parts.options.ranks.length
    // of one that was replaced the last
    if (rank < first + count) return threads.findLast((one) => one.rank === rank - first)
    first += count
  }
  return undefined
}
