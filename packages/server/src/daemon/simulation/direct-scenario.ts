import type { DirectFault } from './direct-worker.ts'
import type { Random } from './random.ts'
import type { EnginePlan, Fault, Scenario } from './scenario.ts'

/** The updates of a scenario whose engines can be written directly. */
export interface DirectUpdates {
  /** Of the first one, which goes through the ring and is not disturbed: after one with `auto` the next one is prepared. */
  readonly first: 'auto' | 'pipelined'
  /** Of the disturbed one, and of the one that follows. */
  readonly disturbed: 'auto' | 'direct'
  readonly last: 'auto' | 'direct'
}

const LARGE_BYTES = 12 * 2 ** 20
const KINDS: readonly DirectFault['kind'][] = ['refuse', 'error', 'error', 'hang', 'close', 'move']
const STEPS: readonly DirectFault['step'][] = ['look', 'begin', 'copies', 'copies', 'end', 'leave']

/** The same with engines of `ckpt_worker`, for some seeds; the others are what they would be without. */
export function withDirect(scenario: Scenario, random: Random): Scenario {
  if (!random.chance(0.4)) return scenario
  const engines = scenario.engines.map((engine): EnginePlan => {
    const direct = random.chance(0.05) ? null : random.pick(['replicas', 'slices'] as const)
    return { ...engine, direct, directHeals: random.chance(0.5) }
  })
  const direct: DirectUpdates = {
    first: random.pick(['auto', 'pipelined']),
    disturbed: random.pick(['auto', 'direct']),
    last: random.pick(['auto', 'auto', 'auto', 'direct']),
  }
  const faults = scenario.faults.map((fault) => inDirectUpdate(fault, random))
  return { ...scenario, ...sizesOf(random), engines, direct, faults }
}

/** Whether the update that faults would disturb is to be direct, none does, and its engines can be written once they have had one. */
export function mustBeDirect({ direct, engines, ranks, faults }: Scenario): boolean {
  const written = engines.flatMap((engine) => (engine.direct === null ? [] : engine.ranks))
  return (
    direct?.disturbed === 'direct' &&
    faults.length === 0 &&
    ranks.every((rank) => written.includes(rank))
  )
}

/** Now and then such that there are several groups of copies. */
function sizesOf(random: Random): Partial<Scenario> {
  if (!random.chance(0.15)) return {}
  return { tensorBytesMost: LARGE_BYTES, ringBytes: null, bucketBytes: null }
}

/** Whichever way the update goes its worker does something wrong. */
function inDirectUpdate(fault: Fault, random: Random): Fault {
  if (fault.type !== 'worker') return fault
  const kind = random.pick(KINDS)
  const step = kind === 'move' ? random.pick(['look', 'begin'] as const) : random.pick(STEPS)
  const direct: DirectFault = { kind, step }
  return { ...fault, script: { ...fault.script, direct } }
}
