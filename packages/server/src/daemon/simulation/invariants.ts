import type { Failure } from '@ckpt/core'
import { DirectWorker } from './direct-worker.ts'
import type { SimulatedEngine } from './engine.ts'
import type { Outcome } from './simulate.ts'
import type { Witness } from './violation.ts'
import type { World } from './world.ts'

/** Nobody else can be to blame for these. */
const OF_A_RANK: readonly Failure['code'][] = ['rank_failed', 'device_error']

/** Every engine has every tensor of the version exactly once. */
export function checkSuccess(world: World, isDirect: boolean, witness: Witness): void {
  const names = [...world.expected.keys()].sort()
  for (const { url, workers, parameters, keys, ended } of world.engines) {
    // it was started again after it had taken everything
    if (ended) continue
    if (workers.length !== keys.length) witness.violated(`${url} has ${workers.length} workers`)
    for (const [worker, one] of (parameters ?? []).entries()) {
      if (one.holds(world.expected) && !one.torn) continue
      witness.violated(`worker ${worker} of ${url} does not have what was brought`)
    }
    for (const worker of workers) {
      if (worker instanceof DirectWorker) {
        // one that the next update was prepared with may take its time
        if (isDirect && !worker.over) witness.violated(`a worker of ${url} has not left`)
        continue
      }
      const { taken, over } = worker
      const right =
        taken.length === names.length && taken.toSorted().every((one, i) => one === names[i])
      if (!right) witness.violated(`a worker of ${url} took ${taken.length} of ${names.length}`)
      if (!over) witness.violated(`a worker of ${url} has not left`)
    }
  }
}

/** It says what went wrong, when, and on which rank. */
export function checkFailure({ code, phase, rank, message }: Failure, witness: Witness): void {
  const text = `${message} (${code}, phase ${phase}, rank ${rank})`
  if (code === 'internal') witness.violated(`a failure that nobody meant: ${text}`)
  if (phase === undefined) witness.violated(`a failure without a phase: ${text}`)
  if (rank !== undefined) return
  if (OF_A_RANK.includes(code)) witness.violated(`a failure of no rank: ${text}`)
  const names = /node \d/.test(message)
  if (code === 'node_lost' && !names) witness.violated(`a failure of no daemon: ${text}`)
}

/**
 * An engine is torn when it has a part of a version. Where the way to it is lost nobody can know that it has all, so then it is
 * called torn as well.
 *
 * @param waysHold every daemon and the way to it has lasted
 */
export function checkTorn(
  world: World,
  id: string,
  { failure }: Outcome,
  waysHold: boolean,
  witness: Witness,
): void {
  for (const engine of world.engines) {
    const torn = world.leader.tornBy(engine.url) === id
    const touched = engine.listsSent + engine.beginsSent > 0
    if (torn && !touched && !engine.ended && waysHold)
      witness.violated(`${engine.url} is called torn and was sent nothing`)
    if (torn && failure !== null && !engine.paused && !engine.ended && waysHold)
      witness.violated(`${engine.url} is torn and goes on`)
    if (torn && failure === null) witness.violated(`${engine.url} is called torn after a success`)
    if (!torn && failure !== null && touched && !engine.ended && !isWhole(world, engine)) {
      witness.violated(`${engine.url} has a part of a version and is not called torn`)
    }
  }
}

function isWhole({ expected, versions }: World, engine: SimulatedEngine): boolean {
  const { parameters, workers, keys } = engine
  if (parameters !== null) {
    if (parameters.every(({ blank }) => blank)) return true
    return versions.some((version) => parameters.every((one) => one.holds(version)))
  }
  const taken = workers.map((worker) => (worker instanceof DirectWorker ? [] : worker.taken))
  return taken.length === keys.length && taken.every(({ length }) => length === expected.size)
}

/** What is left of an update that is over, and should not be; null: nothing. */
export function checkLeft(world: World): string | null {
  const stopped = world.engines.find(
    ({ url, paused }) => paused && world.leader.tornBy(url) === null,
  )
  if (stopped !== undefined) return `${stopped.url} is whole and stays paused`
  for (const { parts, pool, threads } of world.daemons) {
    const { groups, live } = parts.library
    const { memories, streams, events, reads } = live
    const died = threads.length > (pool?.links.length ?? 0)
    // what a thread had when it died nobody gives back
    if (!died && memories + streams + events + reads + groups > 0) {
      const what = `${memories} rings, ${streams} streams, ${events} events, ${reads} reads, ${groups} groups`
      return `daemon ${parts.node} has not given back: ${what}`
    }
    if (parts.registry.leases > 0) return `daemon ${parts.node} still leases its checkpoint`
    if (pool?.links.some(({ busy }) => busy)) return `a rank of daemon ${parts.node} is busy`
  }
  return null
}

/** What daemons still have against engines all of which have taken an update; null: nothing. */
export function checkMarks(world: World): string | null {
  for (const { book, parts } of world.daemons) {
    const { engines, conversations } = parts.disk.written
    const marks = [...(book?.marks ?? []), ...engines]
    if (marks.length > 0) return `daemon ${parts.node} has marks left: ${JSON.stringify(marks)}`
    const open = conversations.find(({ ended }) => !ended)
    if (open !== undefined) return `daemon ${parts.node} has a conversation left: ${open.address}`
  }
  return null
}
