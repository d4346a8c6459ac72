import {
  directSeconds,
  doesSharingPay,
  type HostTraffic,
  isRingBetter,
  ringSeconds,
} from '@ckpt/core'
import type { RankHandle } from '../rank/handle.ts'
import type { HeldVersion } from '../types.ts'
import { clockMs } from '../clock.ts'
import { networkRateOf } from './network.ts'
import type { RateBook } from './rates.ts'
import type { UpdateSpec } from './spec.ts'

/** Updates whose figures are kept. */
const KEPT_MAX = 64
/** After this the ranks are asked anew: their engines may have been started again, hosts may have come. */
const VALID_MS = 600_000

/** What each node of an update copies and reads, as its ranks have said when they looked. */
export interface PlacedBytes {
  /** Of each rank. */
  readonly placed: readonly number[]
  /** Of each rank: the part of it that ranks of its host can bring each other. */
  readonly shareable: readonly number[]
  /** Of each node: bytes that it reads, by the node that has them. */
  readonly fetched: ReadonlyMap<number, ReadonlyMap<number, number>>
}

interface Known {
  readonly atMs: number
  /** Or why they cannot be written directly as long as hosts and networks are the same. */
  readonly said: PlacedBytes | string
}

/**
 * Whether engines that can be written directly had better be updated through the ring: ranks that hold the same, replicas, each copy
 * all of it over a link of their own, where a broadcast copies it once; and a host that has what many need sends it to each of them,
 * where a broadcast lets it leave once.
 */
export class DirectCosts {
  readonly #rates: Pick<RateBook, 'ratesOf'>
  readonly #links: () => readonly RankHandle[]
  readonly #clockMs: () => number
  readonly #known = new Map<string, Known>()

  /** @param links all ranks there are */
  constructor(
    rates: Pick<RateBook, 'ratesOf'>,
    links: () => readonly RankHandle[],
    now: () => number = clockMs,
  ) {
    this.#rates = rates
    this.#links = links
    this.#clockMs = now
  }

  /** What the ranks have said, or why they will go on to refuse. */
  note(version: HeldVersion, spec: UpdateSpec, said: PlacedBytes | string): void {
    const key = keyOf(version, spec)
    this.#known.delete(key)
    this.#known.set(key, { atMs: this.#clockMs(), said })
    const oldest = this.#known.keys().next()
    if (this.#known.size > KEPT_MAX && !oldest.done) this.#known.delete(oldest.value)
  }

  /** Why it goes through the ring; null: it had better not, or nobody has looked yet. */
  against(version: HeldVersion, spec: UpdateSpec): string | null {
    const known = this.#known.get(keyOf(version, spec))
    if (known === undefined || spec.mode !== 'auto') return null
    if (this.#clockMs() - known.atMs > VALID_MS) return null
    if (typeof known.said === 'string') return known.said
    return spec.ranks.length === 1 ? null : this.#dearer(version, spec, known.said)
  }

  /**
   * Whether ranks of a node take from each other's engines what several of them need, instead of copying it over each one's link.
   * Ranks of one device always do, whose broadcasts have been seen at no more than the rate of their one link.
   */
  shares(node: number, { ranks }: UpdateSpec): boolean {
    const links = this.#linksOf(ranks).filter((link) => link.node === node)
    if (links.length < 2) return false
    if (new Set(links.map(({ rank }) => rank.device)).size === 1) return true
    const ranksHere = links.map(({ rank }) => rank)
    return doesSharingPay(this.#rates.ratesOf(ranksHere, []))
  }

  #linksOf(ranks: readonly number[]): RankHandle[] {
    return this.#links().filter(({ rank }) => ranks.includes(rank.rank))
  }

  /** What each rank copies over its link where those of a node share: of what they could, no more is once among theirs than the checkpoint has. */
  #shared(
    { bytes }: HeldVersion,
    spec: UpdateSpec,
    { placed, shareable }: Pick<PlacedBytes, 'placed' | 'shareable'>,
  ): number[] {
    const nodes = this.#linksOf(spec.ranks).map(({ node }) => node)
    const left = new Map(
      [...new Set(nodes)].map((node) => {
        const all = shareable.reduce((sum, one, i) => sum + (nodes[i] === node ? one : 0), 0)
        return [node, all <= bytes || !this.shares(node, spec) ? 1 : bytes / all]
      }),
    )
    return placed.map((own, index) => {
      const part = left.get(nodes[index] as number) ?? 1
      return own - (shareable[index] as number) * (1 - part)
    })
  }

  #dearer(version: HeldVersion, spec: UpdateSpec, said: PlacedBytes): string | null {
    const links = this.#linksOf(spec.ranks)
    const rates = this.#rates.ratesOf(
      links.map(({ rank }) => rank),
      spec.engines.map(({ key }) => key),
    )
    const { broadcastBytesPerSecond } = rates
    const at = ([node, bytes]: readonly [number, number]): HostTraffic => {
      return { bytes, bytesPerSecond: networkRateOf(node, this.#links(), broadcastBytesPerSecond) }
    }
    const placedBytes = this.#shared(version, spec, said)
    const traffic = directTraffic(said).map(at)
    const direct = directSeconds({ placedBytes, traffic }, rates)
    const { bytes: totalBytes, table } = version
    const job = { totalBytes, tensorCount: table.names.length, rankCount: links.length }
    const ring = ringSeconds(job, ringTraffic(version, links).map(at), rates)
    if (!isRingBetter(ring, direct)) return null
    return `a broadcast is expected to take ${ring.toFixed(3)} s, copies into each engine ${direct.toFixed(3)} s`
  }
}

/** Bytes that come to a node, or leave it. */
type NodeBytes = readonly [node: number, bytes: number]

function directTraffic({ fetched }: PlacedBytes): NodeBytes[] {
  const sent = new Map<number, number>()
  const read = [...fetched].map(([node, by]): NodeBytes => {
    for (const [from, bytes] of by) sent.set(from, (sent.get(from) ?? 0) + bytes)
    return [node, [...by.values()].reduce((sum, bytes) => sum + bytes, 0)]
  })
  return [...read, ...sent]
}

function ringTraffic(
  { table, ownerNodes }: HeldVersion,
  links: readonly RankHandle[],
): NodeBytes[] {
  const owned = new Map<number, number>()
  for (const [row, bytes] of table.bytes.entries()) {
    const node = ownerNodes[table.owners[row] as number] as number
    owned.set(node, (owned.get(node) ?? 0) + bytes)
  }
  const all = [...owned.values()].reduce((sum, bytes) => sum + bytes, 0)
  const nodes = [...new Set(links.map(({ node }) => node))]
  const comes = nodes.map((node): NodeBytes => [node, all - (owned.get(node) ?? 0)])
  const leaves = [...owned].filter(([node]) => nodes.some((other) => other !== node))
  return [...comes, ...leaves]
}

function keyOf({ layoutDigest, ownerNodes }: HeldVersion, { ranks, engines }: UpdateSpec): string {
  const keys = engines.map((engine) => [engine.key, engine.ranks])
  return JSON.stringify([layoutDigest, ownerNodes, ranks, keys])
}
