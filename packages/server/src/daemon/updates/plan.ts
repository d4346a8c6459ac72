import {
  CkptError,
  type CostRates,
  decideMode,
  type ModeDecision,
  type PlanInput,
  type PlanNetwork,
  type TensorTable,
} from '@ckpt/core'
import type { PlanSummary } from '../rank/messages.ts'
import type { RankHandle } from '../rank/handle.ts'
import type { DaemonOptions, HeldVersion, RankInfo } from '../types.ts'
import type { RateBook } from './rates.ts'
import type { UpdateSpec } from './spec.ts'

/** Layouts whose decision is kept. */
const KEPT_MAX = 64

type RingOrAuto = Exclude<UpdateSpec['mode'], 'direct'>
type FreeBytes = readonly { readonly rank: number; readonly bytes: number }[]

type Decided = Exclude<ModeDecision, { mode: 'refuse' }>

/** A decision that is kept for a layout. */
interface Kept {
  readonly decided: Decided
  /** Its layout without the engines. */
  readonly anyEngines: string
}

export interface PlannedUpdate {
  readonly key: string
  readonly summary: PlanSummary
  readonly reason: string
}

/**
 * Decides and plans updates. What was decided for a layout is kept while its ring fits into the share of the free memory that it
 * may take, whatever is found out about devices and engines meanwhile: recordings in the engines depend on it.
 */
export class Planner {
  readonly #options: DaemonOptions
  readonly #rates: Pick<RateBook, 'ratesOf'>
  readonly #kept = new Map<string, Kept>()

  constructor(options: DaemonOptions, rates: Pick<RateBook, 'ratesOf'>) {
    this.#options = options
    this.#rates = rates
  }

  /**
   * @throws CkptError what `decideMode` refuses with, `plan_mismatch` when the ranks do not agree
   */
  async plan(
    version: HeldVersion,
    spec: UpdateSpec,
    links: readonly RankHandle[],
    network: PlanNetwork | null = null,
  ): Promise<PlannedUpdate> {
    const { mode } = spec
    if (mode === 'direct') throw new Error('a direct update has no ring')
    const anyEngines = layoutOf(version, spec.ranks, mode)
    const plan = (decided: Decided, reason: string) =>
      planned(version, spec.ranks, decided, reason, links, network)
    const engines = spec.engines.map((engine) => [engine.key, engine.ranks])
    const layout = JSON.stringify([anyEngines, engines])
    const before = this.#kept.get(layout)?.decided
    const [freeBytes, kept] = await Promise.all([
      freeShares(links),
      before === undefined ? null : plan(before, 'kept'),
    ])
    if (before !== undefined && this.#fits(before, freeBytes) && kept !== null) {
      this.#keep(layout, { decided: before, anyEngines })
      return kept
    }
    const keys = spec.engines.map((engine) => engine.key)
    const rates = this.#rates.ratesOf(ranksOf(links), keys)
    const decided = this.#decide(version, mode, freeBytes, rates)
    this.#keep(layout, { decided, anyEngines })
    return plan(decided, decided.reason)
  }

  /**
   * Makes the plan of an update of all these ranks and pickles its lists, so that the first update finds them made. Does
   * nothing where an update would be refused.
   */
  async prepare(version: HeldVersion, links: readonly RankHandle[]): Promise<void> {
    const ranks = links.map(({ rank }) => rank.rank)
    const anyEngines = layoutOf(version, ranks, 'auto')
    const freeBytes = await freeShares(links)
    const kept = [...this.#kept.values()].findLast((one) => one.anyEngines === anyEngines)?.decided
    const decision =
      kept !== undefined && this.#fits(kept, freeBytes)
        ? kept
        : this.#decideMode(version, 'auto', freeBytes, this.#rates.ratesOf(ranksOf(links), null))
    if (decision.mode === 'refuse') return
    const { key, input } = plannedInput(version, ranks, decision, links, null)
    await planOn(links, { type: 'prepare', key, input })
  }

  #decide(version: HeldVersion, mode: RingOrAuto, freeBytes: FreeBytes, rates: CostRates): Decided {
    const decision = this.#decideMode(version, mode, freeBytes, rates)
    if (decision.mode === 'refuse') throw CkptError.from({ phase: 'plan', ...decision.failure })
    return decision
  }

  #decideMode(
    { table, bytes }: HeldVersion,
    mode: RingOrAuto,
    freeBytes: FreeBytes,
    rates: CostRates,
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
      rates,
    })
  }

  #fits({ ringBytes }: Decided, freeBytes: FreeBytes): boolean {
    const leastBytes = Math.min(...freeBytes.map(({ bytes }) => bytes))
    return ringBytes <= this.#options.memoryFraction * leastBytes
  }

  #keep(layout: string, kept: Kept): void {
    this.#kept.delete(layout)
    this.#kept.set(layout, kept)
    const oldest = this.#kept.keys().next()
    if (this.#kept.size > KEPT_MAX && !oldest.done) this.#kept.delete(oldest.value)
  }
}

/** Has every rank keep what direct updates of this version are planned from. Returns its key. */
export async function keepLayout(
  { layoutDigest: key, table, sources }: HeldVersion,
  links: readonly RankHandle[],
): Promise<string> {
  await Promise.all(
    links.map(async (link) => {
      const held = await link.request({ type: 'layout', key, input: null })
      if (!held) await link.request({ type: 'layout', key, input: { table, sources } })
    }),
  )
  return key
}

function ranksOf(links: readonly RankHandle[]): RankInfo[] {
  return links.map(({ rank }) => rank)
}

/** What a decision is made for, but for the engines. */
function layoutOf(
  { layoutDigest, ownerRanks }: HeldVersion,
  ranks: readonly number[],
  mode: RingOrAuto,
): string {
  return JSON.stringify([layoutDigest, ranks, ownerRanks, mode])
}

async function planned(
  version: HeldVersion,
  ranks: readonly number[],
  decided: Decided,
  reason: string,
  links: readonly RankHandle[],
  network: PlanNetwork | null,
): Promise<PlannedUpdate> {
  const { key, input } = plannedInput(version, ranks, decided, links, network)
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
  links: readonly RankHandle[],
  network: PlanNetwork | null,
) {
  const { table, sources, layoutDigest } = version
  const ownerRanks = version.ownerRanks.map((_, owner) => usable(version, owner, links))
  const { mode, ringBytes, bucketBytes, segmentBytes } = decided
  const sizes = [mode, ringBytes, bucketBytes, segmentBytes]
  const nodes = sources.map((source) => source.nodes?.join() ?? null)
  const key = JSON.stringify([layoutDigest, ranks, ownerRanks, ...sizes, nodes, network])
  const rankNodes: number[] = []
  for (const { rank } of links) rankNodes[rank.rank] = rank.numaNode
  const input = {
    table,
    sources,
    ownerRanks,
    rankNodes,
    ...(network === null ? {} : { network }),
    mode,
    ringBytes,
    bucketBytes,
    segmentBytes,
  }
  return { key, input }
}

/**
 * The memory is the daemon's, so where none of an owner's ranks is in the update any other rank of it can copy; where none of
 * that daemon is, any rank reads it over the network.
 */
function usable(
  { ownerRanks, ownerNodes }: HeldVersion,
  owner: number,
  links: readonly RankHandle[],
): readonly number[] {
  const numbers = (some: readonly RankHandle[]) => some.map(({ rank }) => rank.rank)
  const own = numbers(links.filter(({ rank }) => ownerRanks[owner]?.includes(rank.rank)))
  if (own.length > 0) return own
  const near = numbers(links.filter(({ node }) => node === ownerNodes[owner]))
  return near.length > 0 ? near : numbers(links)
}

/** Ranks that share a device share what is free there. */
async function freeShares(links: readonly RankHandle[]): Promise<FreeBytes> {
  const memory = await Promise.all(links.map((link) => link.readMemory()))
  return links.map((link, i) => {
    const sharing = links.filter((other) => other.rank.uuid === link.rank.uuid).length
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
  links: readonly RankHandle[],
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
