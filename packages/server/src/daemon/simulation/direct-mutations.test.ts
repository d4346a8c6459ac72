/** As `mutations.test.ts`, of direct updates. */
import { describe, expect, test } from 'bun:test'
import {
  type DirectAction,
  DirectConversation,
  type DirectEvent,
  packFrame,
  packLeave,
  unpackFrame,
} from '@ckpt/core'
import { Board } from '../rank/board.ts'
import { DirectCopies } from '../rank/direct-copies.ts'
import { DirectPlans } from '../rank/direct-plans.ts'
import { DirectRun } from '../rank/direct-run.ts'
import { EngineMemory } from '../rank/engine-memory.ts'
import { Fetches } from '../rank/fetches.ts'
import { PROGRESS_SENT, type RankMessage } from '../rank/messages.ts'
import { RankPool } from '../rank/pool.ts'
import { SlotCopies } from '../rank/slot-copies.ts'
import { SimulatedDevices } from './devices.ts'
import { firstViolation, type Mutation, nothing } from './mutation.ts'
import type { DirectFault } from './direct-worker.ts'
import type { Fault, Scenario } from './scenario.ts'

/** All of its engines are written directly. */
function directly(scenario: Scenario): Scenario {
  const { ranks } = scenario
  const engines = scenario.engines.map((engine) => ({ ...engine, direct: 'replicas' as const }))
  const idle = ranks.filter((rank) => !engines.some((engine) => engine.ranks.includes(rank)))
  const scripts = idle.map(() => ({ runMs: 1, postMs: 5 }))
  const kind = { dialect: 'D4', isVllm: false, direct: 'replicas', directHeals: true } as const
  return {
    ...scenario,
    engines: idle.length === 0 ? engines : [...engines, { ...kind, ranks: idle, scripts }],
    direct: { first: 'pipelined', disturbed: 'direct', last: 'auto' },
  }
}

/** The same, aborted while it copies for seconds, and followed at once by the next one. */
function slowly(scenario: Scenario): Scenario {
  const speed = { ...scenario.speed, h2dBytesPerMs: 1000 }
  const tensors = scenario.tensors.map((count) => Math.min(count, 3))
  const sizes = { tensors, tensorBytesMost: 1_000_000, speed }
  return directly({ ...scenario, ...sizes, faults: [{ type: 'abort', atMs: 200 }] })
}

function faultOf({ engines }: Scenario, direct: DirectFault): Fault {
  const script = engines[0]?.scripts[0] ?? { runMs: 1, postMs: 1 }
  return { type: 'worker', engine: 0, worker: 0, script: { ...script, direct } }
}

/** As {@link slowly}, where a worker does not come back that could say that it is torn. */
function hanging(scenario: Scenario): Scenario {
  const slow = slowly(scenario)
  return { ...slow, faults: [...slow.faults, faultOf(slow, { kind: 'hang', step: 'copies' })] }
}

/** As {@link directly}, where a worker has moved its weights since the preparation, before it is asked where they lie. */
function moved(scenario: Scenario): Scenario {
  const all = directly(scenario)
  const faults = [faultOf(all, { kind: 'move', step: 'look' })]
  return { ...all, direct: { first: 'auto', disturbed: 'direct', last: 'auto' }, faults }
}

const CLOSED = /an engine's memory was closed that is being written/
/** It is closed as soon as its worker was told. */
const EARLY =
  /closed that is being written|does not hold still for it \(serves\)|does not have what was brought/

const GRANTED = packFrame({ ok: true })

/** What tells a worker to leave says that its weights are what they were. */
function asUntouched(action: DirectAction): DirectAction {
  if (action.type !== 'send') return action
  const head = unpackFrame(action.body)?.head as { readonly type: string }
  return head.type === 'leave' ? { ...action, body: packLeave('enough', true) } : action
}

const MUTATIONS: readonly Mutation[] = [
  {
    name: 'an engine is told that it has all before the copies are complete',
    of: DirectCopies.prototype,
    member: 'done',
    by: () => () => true,
    seen: EARLY,
    // other ranks wait for what it would have brought them
    also: /timed out waiting for the copies/,
  },
  {
    name: 'copies are taken for complete that are not',
    of: SimulatedDevices.prototype,
    member: 'eventQuery',
    by: () => () => true,
    seen: EARLY,
    // the update through the ring comes first
    also: /does not lie in its ring/,
  },
  {
    name: 'a worker is not told to hold still before the copies',
    of: DirectConversation.prototype,
    member: 'step',
    by: (step) =>
      function unasked(this: any, event: DirectEvent) {
        const actions = step.call(this, event)
        if (event.type !== 'begin') return actions
        return step.call(this, { type: 'reply', body: GRANTED, nowMs: event.nowMs })
      },
    seen: /does not hold still for it \(serves\)/,
    also: /is called torn and was sent nothing/,
  },
  {
    name: 'a worker is told that nothing was copied when something was',
    of: DirectConversation.prototype,
    member: 'step',
    by: (step) =>
      function whole(this: any, event: DirectEvent) {
        return (step.call(this, event) as DirectAction[]).map(asUntouched)
      },
    seen: /is told that nothing was copied, and something was/,
  },
  {
    name: 'nobody notes that an engine was told to hold still',
    of: DirectRun.prototype,
    member: 'handle',
    by: (handle) =>
      function untold(this: any, message: RankMessage) {
        handle.call(this, message)
        Atomics.store(new Int32Array(this.options.progress), PROGRESS_SENT, 0)
      },
    change: hanging,
    seen: /has a part of a version and is not called torn/,
  },
  {
    name: 'the memory of an engine is closed while copies are on their way',
    of: EngineMemory.prototype,
    member: 'settle',
    by: () => () => true,
    seen: CLOSED,
  },
  {
    name: 'an engine is written where its weights were',
    of: DirectPlans.prototype,
    member: 'memory',
    by: (memory) =>
      function before(this: any, engine: string) {
        const now = memory.call(this, engine)
        if (now === null) return null
        this.before ??= new Map()
        if (!this.before.has(engine)) this.before.set(engine, now)
        return this.before.get(engine)
      },
    change: moved,
    seen: /has given back memory that is written/,
  },
  {
    name: 'nothing is ever written directly',
    of: DirectPlans.prototype,
    member: 'take',
    by: () => () => ({ reason: 'no' }),
    seen: /nothing stands against a direct update, and it fails/,
  },
  {
    name: 'a rank takes what another one had brought in the update before',
    of: Board.prototype,
    member: 'clear',
    by: nothing,
    seen: /does not have what was brought|has been given back/,
  },
  {
    name: 'an update does not wait for the copies of the one before it',
    of: RankPool.prototype,
    member: 'quiet',
    by: () => async () => {},
    change: slowly,
    seen: /does not hold still for it \((still|loads|serves)\)/,
  },
  {
    name: 'what is read of other hosts is copied before it is there',
    of: Fetches.prototype,
    member: 'isThere',
    by: () => () => true,
    seen: /does not have what was brought/,
  },
  {
    name: 'an engine is told that it has all without what other hosts have',
    of: SlotCopies.prototype,
    member: 'done',
    by: () => () => true,
    seen: EARLY,
    // nobody looks after the rest any more
    also: /timed out waiting for the copies/,
  },
]

describe('the simulation sees that', () => {
  for (const mutation of MUTATIONS) {
    test(mutation.name, () => {
      expect(firstViolation({ change: directly, ...mutation })).toMatch(mutation.seen)
    }, 60_000)
  }
})
