import type { RankHandle } from '../rank/handle.ts'
import type { RankInfo } from '../types.ts'

/**
 * Who has a communicator with whom. The ranks make it when they open, and keep it for the next update of the same ranks: it is
 * dropped when none comes for a while, for it holds device memory, and after any failure.
 */
export class Communicators {
  readonly #idleMs: number
  #kept: { readonly links: readonly RankHandle[]; readonly id: string } | null = null
  #idle: ReturnType<typeof setTimeout> | null = null

  constructor(idleMs: number) {
    this.#idleMs = idleMs
  }

  /** Its id, hex: the kept one of these ranks, or a new one. @throws CkptError `not_supported` where there is no NCCL */
  async take(links: readonly RankHandle[]): Promise<string> {
    this.#wake()
    const kept = this.#kept
    if (kept !== null && isSame(kept.links, links)) return kept.id
    this.drop()
    const [first] = links
    if (first === undefined) throw new Error('nobody to meet')
    const sharers = mostSharers(links.map(({ rank }) => rank))
    const processes = new Set(links.map(({ node }) => node)).size
    const { id } = await first.request({ type: 'communicator_id', sharers, processes })
    this.#kept = { links, id }
    return id
  }

  /** After an update that went well. */
  leave(): void {
    this.#wake()
    this.#idle = setTimeout(() => this.drop(), this.#idleMs)
    this.#idle.unref()
  }

  /** Ranks in an update do it when that has ended. */
  drop(): void {
    this.#wake()
    const links = this.#kept?.links ?? []
    this.#kept = null
    for (const link of links) {
      // of one that has died its link ends it
      if (link.dead === null) link.request({ type: 'communicator_drop' }).catch(() => {})
    }
  }

  #wake(): void {
    if (this.#idle !== null) clearTimeout(this.#idle)
    this.#idle = null
  }
}

/** How many of these ranks have the device of most of them. */
export function mostSharers(ranks: readonly RankInfo[]): number {
  return Math.max(...ranks.map(({ uuid }) => sharersOf(ranks, uuid)))
}

/** How many of these ranks have this device. */
export function sharersOf(ranks: readonly RankInfo[], uuid: string): number {
  return ranks.filter((rank) => rank.uuid === uuid).length
}

/** A Worker that was replaced is another link. */
function isSame(some: readonly RankHandle[], others: readonly RankHandle[]): boolean {
  return some.length === others.length && some.every((link, index) => link === others[index])
}
