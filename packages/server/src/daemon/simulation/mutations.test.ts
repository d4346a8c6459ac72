/** What is broken on purpose must be seen by the simulation: else its rules would say nothing. */
import { describe, expect, test } from 'bun:test'
import { Executor } from '@ckpt/core'
import { RingCopies } from '../rank/copies.ts'
import { Keeper } from '../rank/keeper.ts'
import { RankLink } from '../rank/link.ts'
import { HeldPlan } from '../rank/plans.ts'
import type { RankMessage } from '../rank/messages.ts'
import { EnginePause } from '../updates/engine-pause.ts'
import { EngineBook } from '../updates/engines.ts'
import { RankTeam } from '../updates/team.ts'
import { UpdateTimes } from '../updates/times.ts'
import { SimulatedDevices } from './devices.ts'
import { firstViolation, type Mutation, nothing } from './mutation.ts'
import type { Fault, Scenario } from './scenario.ts'
import { SimulatedThread } from './thread.ts'

/** One rank of one daemon, undisturbed. */
function alone(scenario: Scenario): Scenario {
  const [engine] = scenario.engines
  const engines = engine ? [{ ...engine, ranks: [0], scripts: engine.scripts.slice(0, 1) }] : []
  return { ...scenario, devices: [[0]], ranks: [0], tensors: [5], engines, faults: [] }
}

function deathOf({ ranks }: Scenario): Fault {
  return { type: 'thread_dies', rank: ranks[0] as number, atMs: 60 }
}

function stallOf({ ranks }: Scenario): Fault {
  return { type: 'thread_stalls', rank: ranks[0] as number, atMs: 30, forMs: 8000 }
}

/** Two daemons, whose two ranks share a device, undisturbed. */
function sharing(scenario: Scenario): Scenario {
  const engine = scenario.engines[0] as Scenario['engines'][number]
  const scripts = Array.from({ length: 4 }, () => ({ runMs: 0.1, postMs: 0 }))
  const engines = [{ ...engine, ranks: [0, 1, 2, 3], scripts }]
  const devices = [
    [0, 0],
    [0, 0],
  ]
  return { ...scenario, devices, ranks: [0, 1, 2, 3], tensors: [15, 15], engines, faults: [] }
}

/** What a rank is told of the others of its process stays out. */
function withoutPeers(message: RankMessage): RankMessage {
  if (message.type !== 'request' || message.request.type !== 'open') return message
  const { options } = message.request
  if (options.collective?.type !== 'communicator') return message
  const { member } = options
  const peers = options.collective.peers.map((peer, at) => (at === member ? peer : null))
  const collective = { ...options.collective, peers }
  return { ...message, request: { type: 'open', options: { ...options, collective } } }
}

const MUTATIONS: readonly Mutation[] = [
  {
    name: 'a list is announced before its copies are complete',
    of: SimulatedDevices.prototype,
    member: 'eventQuery',
    by: () => () => true,
    seen: /does not lie in its ring/,
  },
  {
    name: 'a broadcast does not wait for the copy of its root',
    of: SimulatedDevices.prototype,
    member: 'streamWaitEvent',
    by: nothing,
    seen: /does not lie in its ring/,
    // the root's bucket is broadcast before its copies have ended
    also: /more work ended than began/,
  },
  {
    name: 'ring bytes are overwritten one bucket early',
    of: Executor.prototype,
    member: 'issue',
    by: (issue) =>
      function early(this: any, actions: unknown) {
        this.lastAcked++
        issue.call(this, actions)
        this.lastAcked--
      },
    seen: /does not lie in its ring/,
  },
  {
    name: 'the list of one bucket is left out',
    of: HeldPlan.prototype,
    member: 'list',
    by: (list) =>
      function other(this: any, bucket: number) {
        return list.call(this, Math.max(0, bucket - 1))
      },
    seen: /does not lie in its ring|a worker of .* took/,
  },
  {
    name: 'a pause that comes after its resume is not undone',
    of: EnginePause.prototype,
    member: 'undo',
    by: nothing,
    change: (scenario) => ({
      ...scenario,
      pause: 'keep',
      delaysMs: { ...scenario.delaysMs, wires: 15 },
      faults: [{ type: 'abort', atMs: 20 }],
    }),
    seen: /is whole and stays paused/,
  },
  {
    name: 'what another daemon has paused is not owed',
    of: EngineBook.prototype,
    member: 'restore',
    by: nothing,
    seen: /is whole and stays paused/,
  },
  {
    name: 'a rank is not told of an abort',
    of: RankLink.prototype,
    member: 'abort',
    by: nothing,
    change: (scenario) => ({ ...scenario, faults: [{ type: 'abort', atMs: 60 }] }),
    seen: /a run is open|the next update fails|do not come together again/,
  },
  {
    name: 'a copy is enqueued when its run may have closed',
    of: RingCopies.prototype,
    member: 'record',
    by: (record) =>
      function late(this: any, bucket: number) {
        record.call(this, bucket)
        setTimeout(() => this.copy(0, 0), 1000)
      },
    change: alone,
    seen: /a copy of a run that has closed/,
  },
  {
    name: 'nobody notes that an engine was sent lists',
    of: RankTeam.prototype,
    member: 'anySent',
    by: () => () => false,
    seen: /has a part of a version and is not called torn/,
  },
  {
    name: 'every engine of an update that fails is called torn',
    of: RankTeam.prototype,
    member: 'anySent',
    by: () => () => true,
    seen: /is called torn and was sent nothing/,
  },
  {
    name: 'a ring in quarantine goes while a worker reads it',
    of: Keeper.prototype,
    member: 'mayRead',
    by: () => () => false,
    seen: /a ring was freed that a worker reads/,
  },
  {
    name: 'a checkpoint is let go as soon as its update has ended',
    of: RankTeam.prototype,
    member: 'settling',
    by: () => () => null,
    change: (scenario) => ({ ...scenario, faults: [deathOf(scenario)] }),
    seen: /a checkpoint is released that is read/,
  },
  {
    name: 'an abort of one run is taken for one of the next',
    of: SimulatedThread.prototype,
    member: 'post',
    by: (post) =>
      function mixed(this: any, message: RankMessage) {
        post.call(this, message)
        if (message.type === 'abort') this.lateAbort = message
        if (message.type !== 'begin' || this.lateAbort === undefined) return
        post.call(this, { ...this.lateAbort, run: message.run })
      },
    seen: /the next update fails/,
  },
  {
    name: 'broadcasts are launched before their root has the bytes, where ranks of one daemon share a device',
    of: SimulatedThread.prototype,
    member: 'post',
    by: (post) =>
      function untold(this: any, message: RankMessage) {
        post.call(this, withoutPeers(message))
      },
    change: sharing,
    seen: /the next update fails: .*update_timeout/,
  },
  {
    name: 'an update waits longer for its ranks than it may',
    of: UpdateTimes.prototype,
    member: 'stuckMs',
    by: () => () => 60_000,
    change: (scenario) => ({ ...scenario, faults: [{ type: 'short' }, stallOf(scenario)] }),
    seen: /does not end within/,
  },
]

describe('the simulation sees that', () => {
  for (const mutation of MUTATIONS) {
    test(mutation.name, () => {
      expect(firstViolation(mutation)).toMatch(mutation.seen)
    }, 60_000)
  }
})
