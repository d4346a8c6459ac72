/** When a fault strikes: how an update is brought to stand still there, and how it goes on. */
import type { Phase } from '@ckpt/core'
import type { FaultStep } from '../../packages/server/src/daemon/rank/injected.ts'
import { BUCKETS } from './checkpoint.ts'
import type { TestCluster } from './cluster.ts'
import { until } from './until.ts'

export const PLACES = [
  'gather',
  'plan',
  'meet',
  'open',
  'first',
  'middle',
  'last',
  'release',
  'post',
] as const
export type Place = (typeof PLACES)[number]

const REACH_MS = 10_000
const MIDDLE = BUCKETS / 2

interface PlaceFacts {
  readonly phase: Phase
  /** What a rank's Worker does there; null: it does nothing. */
  readonly step: FaultStep | null
  /** What holds an engine there; null: it takes no part yet. */
  readonly engineFault: string | null
  /** An engine that is lost there has a part of the update. */
  readonly tears: boolean
}

export const FACTS: Readonly<Record<Place, PlaceFacts>> = {
  gather: { phase: 'gather', step: null, engineFault: null, tears: false },
  plan: { phase: 'plan', step: 'plan', engineFault: null, tears: false },
  meet: { phase: 'open', step: 'meet', engineFault: null, tears: false },
  open: { phase: 'open', step: 'open', engineFault: 'hold@open', tears: false },
  first: { phase: 'transfer', step: 'list-0', engineFault: 'hold@0', tears: true },
  middle: { phase: 'transfer', step: `list-${MIDDLE}`, engineFault: `hold@${MIDDLE}`, tears: true },
  last: {
    phase: 'transfer',
    step: `list-${BUCKETS - 1}`,
    engineFault: `hold@${BUCKETS - 1}`,
    tears: true,
  },
  release: { phase: 'release', step: 'release', engineFault: 'hold@post', tears: true },
  post: { phase: 'post', step: null, engineFault: 'hold@flush', tears: false },
}

/** Something that keeps the next update at a place. */
export interface Hold {
  /** Until the update stands there. */
  reached(updateId: string): Promise<void>
  release(): Promise<void>
}

/** @param node whose daemon, rank or engine keeps it there */
export async function holdAt(cluster: TestCluster, place: Place, node: number): Promise<Hold> {
  const { phase, step, engineFault } = FACTS[place]
  const inPhase = (id: string) =>
    until(`update ${id} to be in phase ${phase}`, REACH_MS, async () => {
      const state = await cluster.state(id)
      if (state?.state === 'failed') throw new Error(JSON.stringify(state.error))
      return state?.phase === phase
    })
  if (engineFault !== null) {
    const engine = cluster.engine(node)
    await engine.arm(engineFault)
    return {
      async reached(id) {
        await engine.holds()
        await inPhase(id)
      },
      release: () => engine.arm(),
    }
  }
  const daemon = cluster.daemon(node)
  if (step === null) {
    // it is asked for what it holds, and does not answer
    daemon.child.signal('SIGSTOP')
    return {
      reached: async (id) => void (await inPhase(id)),
      release: async () => daemon.child.signal('SIGCONT'),
    }
  }
  daemon.arm('hold', step)
  return {
    async reached(id) {
      await daemon.struck()
      await inPhase(id)
    },
    release: async () => daemon.disarm(),
  }
}
