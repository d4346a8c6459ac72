/** When a fault strikes: how an update is brought to stand still there, and how it goes on. */
import type { Phase } from '@ckpt/core'
import type { FaultStep } from '../../packages/server/src/daemon/rank/injected.ts'
import type { TestCluster } from './cluster.ts'
import { BUCKETS, type Way } from './kinds.ts'
import { until } from '../support/until.ts'

export type Place =
  | 'gather'
  | 'plan'
  | 'meet'
  | 'open'
  | 'look'
  | 'looked'
  | 'begin'
  | 'begun'
  | 'first'
  | 'middle'
  | 'last'
  | 'copied'
  | 'release'
  | 'post'

const REACH_MS = 10_000
const MIDDLE = BUCKETS / 2

export interface PlaceFacts {
  readonly phase: Phase
  /** What a rank's Worker does there. */
  readonly step?: FaultStep
  /** What holds an engine there. */
  readonly engineFault?: string
  /** What holds the engine of another node a step before, so that the update comes to nothing further. */
  readonly elsewhere?: string
  /** The part of a direct update's copies that is made, of which the rest goes on. */
  readonly copied?: number
  /** An engine that is lost there has a part of the update, or could have. */
  readonly tears?: true
  /** Whose loss leaves it open: its engine may find later that it is whole. */
  readonly unsure?: readonly ('follower' | 'engine')[]
  /** When the loss of an engine shows that dies there, or stands still; default: there. */
  readonly killed?: readonly Phase[]
  readonly stopped?: readonly Phase[]
}

// nobody asks for an engine before
const EARLY = { killed: ['open'], stopped: ['open'] } as const
// its last reply and the answer to the request are one
const ENDING = { killed: ['release', 'post'], stopped: ['release', 'post'] } as const
/** It is written to whether it stands still or not, until it is to say that it has all, which it may find when it goes on. */
const WRITTEN = { stopped: ['release'], unsure: ['engine'] } as const
/** Nothing is changed yet. */
const UNWRITTEN = { killed: ['open'] } as const
/** Every rank has copied: one that has not would find later that its engine is as it was. */
const SOME = 0.01
/** It may hear later what its daemon has said last, that nothing was copied or that all is there, and nobody hears its answer. */
const UNHEARD = { unsure: ['follower', 'engine'] } as const

const RING = {
  gather: { phase: 'gather', ...EARLY },
  plan: { phase: 'plan', step: 'plan', ...EARLY },
  meet: { phase: 'open', step: 'meet' },
  open: { phase: 'open', step: 'open', engineFault: 'hold@open' },
  first: { phase: 'transfer', step: 'list-0', engineFault: 'hold@0', tears: true },
  middle: { phase: 'transfer', step: `list-${MIDDLE}`, engineFault: `hold@${MIDDLE}`, tears: true },
  last: {
    phase: 'transfer',
    step: `list-${BUCKETS - 1}`,
    engineFault: `hold@${BUCKETS - 1}`,
    tears: true,
  },
  release: { phase: 'release', step: 'release', engineFault: 'hold@post', tears: true, ...ENDING },
  post: { phase: 'post', engineFault: 'hold@flush' },
} satisfies Partial<Record<Place, PlaceFacts>>

const DIRECT = {
  gather: { phase: 'gather', ...EARLY },
  open: { phase: 'open', step: 'open', ...UNWRITTEN },
  look: { phase: 'open', step: 'look', engineFault: 'hold@open', ...UNWRITTEN },
  looked: { phase: 'open', step: 'looked', elsewhere: 'hold@open', ...UNWRITTEN },
  begin: {
    phase: 'open',
    step: 'begin',
    engineFault: 'hold@0',
    tears: true,
    ...UNHEARD,
    ...UNWRITTEN,
  },
  begun: {
    phase: 'open',
    step: 'begun',
    engineFault: 'hold@1',
    elsewhere: 'hold@0',
    tears: true,
    ...WRITTEN,
    ...UNHEARD,
    // the other one goes on before it is missed
    killed: ['transfer', 'open'],
  },
  first: { phase: 'transfer', step: 'copied-0', copied: SOME, tears: true, ...WRITTEN },
  middle: { phase: 'transfer', step: 'copied-50', copied: 0.5, tears: true, ...WRITTEN },
  last: { phase: 'transfer', step: 'copied-70', copied: 0.7, tears: true, ...WRITTEN },
  copied: { phase: 'transfer', step: 'copied-100', tears: true, ...WRITTEN },
  release: {
    phase: 'release',
    step: 'release',
    engineFault: 'hold@1',
    tears: true,
    ...ENDING,
    ...UNHEARD,
  },
  post: { phase: 'post', engineFault: 'hold@flush' },
} satisfies Partial<Record<Place, PlaceFacts>>

const FACTS: Readonly<Record<Way, Partial<Record<Place, PlaceFacts>>>> = {
  ring: RING,
  direct: DIRECT,
}

export function placesOf(way: Way): Place[] {
  return Object.keys(FACTS[way]) as Place[]
}

export function factsOf(way: Way, place: Place): PlaceFacts {
  const facts = FACTS[way][place]
  if (facts === undefined) throw new Error(`no ${way} update comes to ${place}`)
  return facts
}

/** Something that keeps the next update at a place. */
export interface Hold {
  /** Rank of the engine that does; null: it is none. */
  readonly engine: number | null
  /** Until the update stands there. */
  reached(updateId: string): Promise<void>
  release(): Promise<void>
}

/** @param node whose daemon, rank or engine keeps it there */
export async function holdAt(
  cluster: TestCluster,
  { phase, step, engineFault, copied }: Omit<PlaceFacts, 'elsewhere'>,
  node: number,
): Promise<Hold> {
  const inPhase = (id: string) => reached(cluster, id, phase)
  if (copied !== undefined) {
    const there = (id: string) => reached(cluster, id, phase, copied)
    return { engine: null, reached: there, release: async () => {} }
  }
  if (engineFault !== undefined) {
    const engine = cluster.engine(node)
    await engine.arm(engineFault)
    return {
      engine: engine.rank,
      async reached(id) {
        await engine.holds()
        await inPhase(id)
      },
      release: () => engine.arm(),
    }
  }
  const daemon = cluster.daemon(node)
  if (step === undefined) {
    // it is asked for what it holds, and does not answer
    daemon.child.signal('SIGSTOP')
    return { engine: null, reached: inPhase, release: async () => daemon.child.signal('SIGCONT') }
  }
  daemon.arm('hold', step)
  return {
    engine: null,
    async reached(id) {
      await daemon.struck()
      await inPhase(id)
    },
    release: async () => daemon.disarm(),
  }
}

/** @param copied of its copies, at least */
async function reached(cluster: TestCluster, id: string, phase: Phase, copied = 0): Promise<void> {
  await until(`update ${id} to be in phase ${phase}`, REACH_MS, async () => {
    const state = await cluster.state(id)
    if (state?.state === 'failed') throw new Error(JSON.stringify(state.error))
    return state?.phase === phase && state.buckets_done >= copied * state.buckets
  })
}
