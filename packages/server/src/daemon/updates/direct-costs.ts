import { type DirectJob, directSeconds, type HostReads, ringSeconds } from '@ckpt/core'
import type { RankHandle } from '../rank/handle.ts'
import type { HeldVersion } from '../types.ts'
import { networkRateOf } from './network.ts'
import type { RateBook } from './rates.ts'
import type { UpdateSpec } from './spec.ts'

/** Updates whose figures are kept. */
const KEPT_MAX = 64
/** A direct update takes no memory of the device and no work of the engine: a ring that is hardly faster is no reason against it. */
const RING_SHARE_MOST = 0.8

/** What each node of an update copies and reads, as its ranks have said when they looked. */
export interface PlacedBytes {
  /** Of each rank. */
  readonly placed: readonly number[]
  readonly fetched: ReadonlyMap<number, number>
}

/**
 * Whether engines that can be written directly had better be updated through the ring: ranks that hold the same, replicas, each copy
 * all of it over a link of their own, where a broadcast copies it once.
 */
export class DirectCosts {
  readonly #rates: Pick<RateBook, 'ratesOf'>
  readonly #links: () => readonly RankHandle[]
  readonly #known = new Map<string, PlacedBytes>()

  /** @param links all ranks there are */
  constructor(rates: Pick<RateBook, 'ratesOf'>, links: () => readonly RankHandle[]) {
    this.#rates = rates
    this.#links = links
  }

  /** What the ranks have said. */
  note(version: HeldVersion, spec: UpdateSpec, placed: PlacedBytes): void {
    const key = keyOf(version, spec)
    this.#known.delete(key)
    this.#known.set(key, placed)
    const oldest = this.#known.keys().next()
    if (this.#known.size > KEPT_MAX && !oldest.done) this.#known.delete(oldest.value)
  }

  /** Why it goes through the ring; null: it had better not, or nobody has looked yet. */
  against(version: HeldVersion, spec: UpdateSpec): string | null {
    const known = this.#known.get(keyOf(version, spec))
    if (known === undefined || spec.mode !== 'auto' || spec.ranks.length === 1) return null
    const links = this.#links().filter(({ rank }) => spec.ranks.includes(rank.rank))
    const rates = this.#rates.ratesOf(
      links.map(({ rank }) => rank),
      spec.engines.map(({ key }) => key),
    )
    const direct = directSeconds(this.#jobOf(known), rates)
    const { bytes: totalBytes, table } = version
    const job = { totalBytes, tensorCount: table.names.length, rankCount: links.length }
    const ring = ringSeconds(job, this.#ringReads(version, links), rates)
    if (ring >= RING_SHARE_MOST * direct) return null
    return `a broadcast is expected to take ${ring.toFixed(3)} s, copies into each engine ${direct.toFixed(3)} s`
  }

  #jobOf({ placed, fetched }: PlacedBytes): DirectJob {
    const reads = [...fetched].map(([node, bytes]) => this.#readsOf(node, bytes))
    return { placedBytes: placed, reads }
  }

  #ringReads({ table, ownerNodes }: HeldVersion, links: readonly RankHandle[]): HostReads[] {
    const nodes = [...new Set(links.map(({ node }) => node))]
    return nodes.map((node) => {
      const bytes = table.bytes.reduce((sum, size, row) => {
        return ownerNodes[table.owners[row] as number] === node ? sum : sum + size
      }, 0)
      return this.#readsOf(node, bytes)
    })
  }

  #readsOf(node: number, bytes: number): HostReads {
    return { bytes, bytesPerSecond: networkRateOf(node, this.#links()) }
  }
}

function keyOf({ layoutDigest, ownerNodes }: HeldVersion, { ranks, engines }: UpdateSpec): string {
  const keys = engines.map((engine) => [engine.key, engine.ranks])
  return JSON.stringify([layoutDigest, ownerNodes, ranks, keys])
}
