import {
  CkptError,
  decideMode,
  type ModeDecision,
  type PlanInput,
  type TensorTable,
} from '@ckpt/core'
import type { PlanSummary } from '../rank/messages.ts'
import type { RankLink } from '../rank/link.ts'
import type { DaemonOptions, HeldVersion } from '../types.ts'
import type { UpdateSpec } from './spec.ts'

/** Layouts whose decision is kept. */
const KEPT_MAX = 64

type Decided = Exclude<ModeDecision, { mode: 'refuse' }>

export interface PlannedUpdate {
  readonly key: string
  readonly summary: PlanSummary
  readonly reason: string
}

/**
 * Decides and plans updates. What was decided for a layout is kept while its ring fits into the share of the free memory that it
 * may take: recordings in the engines depend on it.
 */
export class Planner {
  readonly #options: DaemonOptions
  readonly #kept = new Map<string, Decided>()

  constructor(options: DaemonOptions) {
    this.#options = options
  }

  /**
   * @throws CkptError what `decideMode` refuses with, `plan_mismatch` when the ranks do not agree
   */
  async plan(
    version: HeldVersion,
    spec: UpdateSpec,
    links: readonly RankLink[],
  ): Promise<PlannedUpdate> {
    const layout = JSON.stringify([
      version.layoutDigest,
      spec.ranks,
      version.ownerRanks,
      spec.engines.map((engine) => [engine.key, engine.ranks]),
      spec.mode,
    ])
    const before = this.#kept.get(layout)
    const [freeBytes, kept] = await Promise.all([
      freeShares(links),
      before === undefined ? null : planned(version, spec.ranks, before, 'kept', links),
    ])
    const capBytes = this.#options.memoryFraction * Math.min(...freeBytes.map(({ bytes }) => bytes))
    if (before !== undefined && before.ringBytes <= capBytes && kept !== null) {
      this.#keep(layout, before)
      return kept
    }
    const decided = this.#decide(version, spec, freeBytes)
    this.#keep(layout, decided)
    return planned(version, spec.ranks, decided, decided.reason, links)
  }

  /**
   * Makes the plan of an update of all these ranks and pickles its lists, so that the first update finds them made. Does
   * nothing where an update would be refused.
   */
  async prepare(version: HeldVersion, links: readonly RankLink[]): Promise<void> {
    const decision = this.#decideMode(version, 'auto', await freeShares(links))
    if (decision.mode === 'refuse') return
    const ranks = links.map(({ rank }) => rank.rank)
    const { key, input } = plannedInput(version, ranks, decision, links)
    await planOn(links, { type: 'prepare', key, input })
  }

  #decide(
    version: HeldVersion,
    spec: UpdateSpec,
    freeBytes: { rank: number; bytes: number }[],
  ): Decided {
    const decision = this.#decideMode(version, spec.mode, freeBytes)
    if (decision.mode === 'refuse') throw CkptError.from({ phase: 'plan', ...decision.failure })
    return decision
  }

  #decideMode(
    { table, bytes }: HeldVersion,
    mode: UpdateSpec['mode'],
    freeBytes: { rank: number; bytes: number }[],
  ): ModeDecision {
    return decideMode({
      freeBytes,
      fraction: this.#options.memoryFraction,
      largest: largestOf(table),
      totalBytes: bytes,
      tensorCount: table.names.length,
      ringBytes: this.#options.ringBytes,
      bucketBytes: this.#options.bucketBytes,
      mode,
    })
  }

  #keep(layout: string, decided: Decided): void {
    this.#kept.delete(layout)
    this.#kept.set(layout, decided)
    const oldest = this.#kept.keys().next()
    if (this.#kept.size > KEPT_MAX && !oldest.done) this.#kept.delete(oldest.value)
  }
}

async function planned(
  version: HeldVersion,
  ranks: readonly number[],
  decided: Decided,
  reason: string,
  links: readonly RankLink[],
): Promise<PlannedUpdate> {
  const { key, input } = plannedInput(version, ranks, decided, links)
  return { key, summary: await planOn(links, { type: 'plan', key, input }), reason }
}

/**
 * A plan is the same whichever engines take it. Versions of one layout whose memory lies on other NUMA nodes have plans of their
 * own: they differ in who copies what, which no engine sees.
 */
function plannedInput(
  version: HeldVersion,
  ranks: readonly number[],
  decided: Decided,
  links: readonly RankLink[],
) {
  const { table, sources, layoutDigest } = version
  const ownerRanks = version.ownerRanks.map((owners) => usable(owners, ranks))
  const { mode, ringBytes, bucketBytes, segmentBytes } = decided
  const sizes = [mode, ringBytes, bucketBytes, segmentBytes]
  const nodes = sources.map((source) => source.nodes?.join() ?? null)
  const key = JSON.stringify([layoutDigest, ranks, ownerRanks, ...sizes, nodes])
  const rankNodes: number[] = []
  for (const { rank } of links) rankNodes[rank.rank] = rank.numaNode
  const input = {
    table,
    sources,
    ownerRanks,
    rankNodes,
    mode,
    ringBytes,
    bucketBytes,
    segmentBytes,
  }
  return { key, input }
}

/** The memory is the daemon's, so where none of an owner's ranks is in the update any other rank can copy. */
function usable(ranks: readonly number[], inUpdate: readonly number[]): readonly number[] {
  const both = ranks.filter((rank) => inUpdate.includes(rank))
  return both.length === 0 ? inUpdate : both
}

/** Ranks that share a device share what is free there. */
async function freeShares(links: readonly RankLink[]): Promise<{ rank: number; bytes: number }[]> {
  const memory = await Promise.all(links.map((link) => link.readMemory()))
  return links.map((link, i) => {
    const sharing = links.filter((other) => other.rank.device === link.rank.device).length
    const freeBytes = memory[i]?.freeBytes ?? 0
    return { rank: link.rank.rank, bytes: Math.floor(freeBytes / sharing) }
  })
}

function largestOf(table: TensorTable): { name: string; bytes: number } {
  let largest = 0
  for (let i = 1; i < table.bytes.length; i++) {
    if ((table.bytes[i] as number) > (table.bytes[largest] as number)) largest = i
  }
  return { name: table.names[largest] ?? '', bytes: table.bytes[largest] ?? 0 }
}

/** Every rank makes the plan itself, unless it holds it; all must come to the same. */
async function planOn(
  links: readonly RankLink[],
  request: { type: 'plan' | 'prepare'; key: string; input: PlanInput },
): Promise<PlanSummary> {
  const summaries = await Promise.all(
    links.map(async (link) => {
      const held = await link.request({ ...request, input: null })
      const summary = held ?? (await link.request(request))
      if (summary === null) throw new Error('a rank made no plan')
      return summary
    }),
  )
  const [first] = summaries
  if (first === undefined) throw new Error('an update has at least one rank')
  const other = summaries.findIndex((one) => one.digest !== first.digest)
  if (other !== -1) {
    const message = `rank ${links[other]?.rank.rank} made the plan ${summaries[other]?.digest}, rank ${links[0]?.rank.rank} ${first.digest}`
    throw new CkptError('plan_mismatch', message, { rank: links[other]?.rank.rank, phase: 'plan' })
  }
  return first
}
