import type { Dialect } from '@ckpt/core'
import type { DirectUpdates } from './direct-scenario.ts'
import type { EngineKind, WorkerScript } from './engine.ts'
import { Random } from './random.ts'

/** How a simulated update is disturbed. */
export type Fault =
  /** A worker of an engine raises, hangs or dies. */
  | {
      readonly type: 'worker'
      readonly engine: number
      readonly worker: number
      readonly script: WorkerScript
    }
  /** Its processes end, and others take their place. */
  | { readonly type: 'engine_restart'; readonly engine: number; readonly atMs: number }
  | { readonly type: 'abort'; readonly atMs: number }
  /** A copy of a daemon fails, as the so-many-th. */
  | { readonly type: 'copy'; readonly node: number; readonly copy: number }
  /** A rank's thread ends, or does nothing for a while. */
  | { readonly type: 'thread_dies'; readonly rank: number; readonly atMs: number }
  | {
      readonly type: 'thread_stalls'
      readonly rank: number
      readonly atMs: number
      readonly forMs: number
    }
  /** A daemon's process ends, its connection ends, or goes on without bringing anything. */
  | { readonly type: 'daemon_dies' | 'cut' | 'dark'; readonly node: number; readonly atMs: number }
  /** The time is too short. */
  | { readonly type: 'short' }

export interface EnginePlan extends EngineKind {
  /** Global ranks. */
  readonly ranks: readonly number[]
  readonly scripts: readonly WorkerScript[]
}

/** All that a seed decides before anything happens. */
export interface Scenario {
  /** Per daemon, the device of each of its ranks. */
  readonly devices: readonly (readonly number[])[]
  /** Global ranks of the update. */
  readonly ranks: readonly number[]
  /** Of each daemon. */
  readonly tensors: readonly number[]
  readonly tensorBytesMost: number
  readonly ringBytes: number | null
  readonly bucketBytes: number | null
  readonly mode: 'auto' | 'pipelined' | 'serial'
  readonly broadcast: 'copies' | 'nccl'
  readonly engines: readonly EnginePlan[]
  readonly pause: 'none' | 'keep'
  readonly timeoutS: number
  readonly openS: number
  readonly speed: { h2dBytesPerMs: number; broadcastBytesPerMs: number; extraMs: number }
  /** The most that messages take: to workers, between threads, between daemons. */
  readonly delaysMs: { readonly wires: number; readonly threads: number; readonly network: number }
  readonly faults: readonly Fault[]
  /** Null: every update goes through the ring. */
  readonly direct: DirectUpdates | null
}

const MIB = 2 ** 20
const DIALECTS: readonly Dialect[] = ['D1', 'D2', 'D3', 'D4']
const RANKS_MAX = 8

export function makeScenario(random: Random): Scenario {
  const devices = makeDevices(random)
  const all = devices.flat().map((_, rank) => rank)
  const some = random.chance(0.2) ? all.filter(() => random.chance(0.5)) : all
  const ranks = some.length === 0 ? all : some
  const tensorBytesMost = random.pick([1000, 100_000, MIB, 3 * MIB])
  const engines = makeEngines(random, ranks)
  const speed = {
    h2dBytesPerMs: random.pick([MIB / 20, MIB, 50 * MIB]),
    broadcastBytesPerMs: random.pick([MIB / 20, MIB, 50 * MIB]),
    extraMs: random.pick([0, 0.1, 5]),
  }
  const tensors = makeTensors(random, devices, ranks)
  const timeoutS = 20
  return {
    devices,
    ranks,
    tensors,
    tensorBytesMost,
    ringBytes: random.chance(0.7) ? random.integer(1, 6) * 2 * MIB : null,
    bucketBytes: random.chance(0.7) ? random.integer(1, 40) * 50_000 : null,
    mode: random.pick(['auto', 'auto', 'pipelined', 'serial']),
    broadcast: random.pick(['copies', 'nccl']),
    engines,
    pause: random.chance(0.2) ? 'keep' : 'none',
    timeoutS,
    openS: random.pick([2, 10]),
    speed,
    delaysMs: {
      wires: random.pick([0.01, 1, 20]),
      threads: random.pick([0.05, 1, 10]),
      network: random.pick([0.2, 5, 50]),
    },
    faults: makeFaults(random, { devices, ranks, engines }),
    direct: null,
  }
}

/** Of daemons without a rank in the update, the others read what they hold. */
function makeTensors(
  random: Random,
  devices: readonly (readonly number[])[],
  ranks: readonly number[],
): number[] {
  let first = 0
  const tensors = devices.map(({ length }) => {
    const takesPart = ranks.some((rank) => rank >= first && rank < first + length)
    first += length
    return random.chance(takesPart ? 0.85 : 0.4) ? random.integer(1, 20) : 0
  })
  if (!tensors.some((count) => count > 0)) tensors[0] = random.integer(1, 20)
  return tensors
}

function makeDevices(random: Random): number[][] {
  const daemons = random.pick([1, 1, 2, 2, 3, 4])
  const most = Math.max(1, Math.floor(RANKS_MAX / daemons))
  return Array.from({ length: daemons }, () => {
    const count = random.integer(1, Math.min(most, random.pick([1, 2, most])))
    const shared = random.chance(0.2)
    return Array.from({ length: count }, (_, rank) => (shared ? rank >> 1 : rank))
  })
}

function scriptOf(random: Random): WorkerScript {
  return { runMs: random.pick([0.1, 2, 30]), postMs: random.pick([0, 5, 100]) }
}

/** Consecutive ranks; some ranks may have none. */
function makeEngines(random: Random, ranks: readonly number[]): EnginePlan[] {
  const left = [...ranks]
  const engines: EnginePlan[] = []
  while (left.length > 0) {
    const own = left.splice(0, random.integer(1, left.length))
    // an engine of none: these ranks acknowledge by themselves
    if (engines.length > 0 && random.chance(0.1)) continue
    const scripts = own.map(() => scriptOf(random))
    const dialect = random.pick(DIALECTS)
    const kind = { dialect, isVllm: random.chance(0.3), direct: null, directHeals: false }
    engines.push({ ranks: own, ...kind, scripts })
  }
  return engines
}

interface FaultPlace {
  readonly devices: readonly (readonly number[])[]
  readonly ranks: readonly number[]
  readonly engines: readonly EnginePlan[]
}

function makeFaults(random: Random, place: FaultPlace): Fault[] {
  const count = random.pick([0, 0, 1, 1, 1, 2, 3])
  return Array.from({ length: count }, () => makeFault(random, place))
}

function makeFault(random: Random, { devices, ranks, engines }: FaultPlace): Fault {
  const atMs = random.pick([random.between(0, 50), random.between(0, 500), random.between(0, 4000)])
  const engine = random.integer(0, engines.length - 1)
  const rank = random.pick(ranks)
  const node = random.integer(0, devices.length - 1)
  const follower = devices.length > 1 ? random.integer(1, devices.length - 1) : 0
  const kind = random.integer(0, 14)
  if (kind <= 4) return workerFault(random, engine, engines[engine] as EnginePlan)
  if (kind === 5) return { type: 'engine_restart', engine, atMs }
  if (kind === 6) return { type: 'abort', atMs }
  if (kind === 7) return { type: 'copy', node, copy: random.integer(0, 10) }
  if (kind === 8) return { type: 'thread_dies', rank, atMs }
  if (kind === 9) return { type: 'thread_stalls', rank, atMs, forMs: random.between(1, 8000) }
  if (kind === 10) return { type: 'short' }
  // the leader's own: nobody is left to say how the update has ended
  if (kind === 14) return { type: 'daemon_dies', node: 0, atMs }
  if (follower === 0) return { type: 'abort', atMs }
  return { type: random.pick(['daemon_dies', 'cut', 'dark'] as const), node: follower, atMs }
}

function workerFault(random: Random, engine: number, plan: EnginePlan): Fault {
  const worker = random.integer(0, plan.ranks.length - 1)
  const step = random.pick(['handle', 'list', 'list', 'list', 'release', 'post'] as const)
  const kind = random.pick(['error', 'hang', 'close'] as const)
  const fault = step === 'list' ? { kind, step, bucket: random.integer(0, 6) } : { kind, step }
  const script = { ...(plan.scripts[worker] as WorkerScript), fault }
  return { type: 'worker', engine, worker, script }
}
