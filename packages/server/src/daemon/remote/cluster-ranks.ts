import { CkptError, type Failure, NODES_MAX } from '@ckpt/core'
import { log } from '../log.ts'
import type { LostRank, RankHandle, Ranks } from '../rank/handle.ts'
import { socketName } from '../updates/sockets.ts'
import type { RemoteNode } from './remote-node.ts'
import type { RemoteRank } from './remote-rank.ts'

/** What the leader knows of a daemon that has come at least once. */
interface KnownNode {
  readonly node: RemoteNode
  readonly rankCount: number
}

/** A daemon that no update can count on. */
export interface MissingNode {
  readonly node: number
  readonly message: string
  /** The numbers that its ranks keep; empty: it was never here, or nobody knows them yet. */
  readonly ranks: readonly number[]
}

/**
 * The ranks of all daemons, numbered daemon by daemon; the leader's own come first. A daemon that is lost keeps its numbers, for as
 * many ranks as it had.
 */
export class ClusterRanks implements Ranks {
  readonly #local: Ranks
  readonly #nodeCount: number
  readonly #ownAddress: (rank: number) => string
  /** By node rank; of this daemon nothing. */
  readonly #known: (KnownNode | undefined)[] = []
  /** Their numbers follow those of all others. */
  #guests: RemoteNode[] = []

  constructor(local: Ranks, nodeCount: number, ownAddress: (rank: number) => string) {
    this.#local = local
    this.#nodeCount = nodeCount
    this.#ownAddress = ownAddress
  }

  /** The other daemons that are there, in order. */
  get nodes(): readonly RemoteNode[] {
    return [...this.members, ...this.#guests]
  }

  /** Those that are no guests. */
  get members(): readonly RemoteNode[] {
    return this.#known.flatMap((known) => (known?.node.lost === null ? [known.node] : []))
  }

  /**
   * It has come, or come again. A rank keeps its number for as long as the leader runs, so with another number of ranks a daemon is of
   * no use.
   */
  join(node: RemoteNode): void {
    if (node.node >= NODES_MAX) return this.#joinGuest(node)
    const before = this.#known[node.node]
    before?.node.lose({ code: 'node_lost', message: `node ${node.node} has come again` })
    const { length } = node.description.ranks
    const rankCount = before?.rankCount ?? length
    this.#known[node.node] = { node, rankCount }
    if (length !== rankCount) {
      const message = `node ${node.node} has come with ${length} ranks in place of ${rankCount}: start the leader again to count anew`
      log.warn('{message}', { message })
      return node.lose({ code: 'node_lost', message })
    }
    if (before === undefined) return this.#numberFrom(node.node)
    const first = this.#firstRank(node.node)
    if (first !== null) node.number(first)
  }

  #joinGuest(guest: RemoteNode): void {
    this.lose(guest.node, { code: 'node_lost', message: `guest ${guest.node} has come again` })
    this.#guests = [...this.#guests, guest]
    this.#numberGuest(guest)
  }

  /** After every member's, once all have come: their numbers stay. */
  #numberGuest(guest: RemoteNode): void {
    const members = this.#firstRank(this.#nodeCount)
    if (members === null) return
    const others = this.#guests.filter((one) => one !== guest && one.ranks.length > 0)
    const ends = others.map(({ ranks }) => (ranks.at(-1)?.rank.rank ?? 0) + 1)
    guest.number(Math.max(members, ...ends))
  }

  /** Null: daemons before it have not come yet, so nobody knows. */
  #firstRank(node: number): number | null {
    let first = this.#local.links.length
    for (let before = 1; before < node; before++) {
      const known = this.#known[before]
      if (known === undefined) return null
      first += known.rankCount
    }
    return first
  }

  #numberFrom(node: number): void {
    for (const known of this.#known.slice(node)) {
      const first = known === undefined ? null : this.#firstRank(known.node.node)
      if (first !== null) known?.node.number(first)
    }
    for (const guest of this.#guests) if (guest.ranks.length === 0) this.#numberGuest(guest)
  }

  lose(node: number, failure: Failure): void {
    this.#known[node]?.node.lose(failure)
    for (const guest of this.#guests) if (guest.node === node) guest.lose(failure)
    this.#guests = this.#guests.filter((guest) => guest.lost === null)
  }

  get links(): readonly RankHandle[] {
    return [...this.#local.links, ...this.nodes.flatMap(({ ranks }) => ranks)]
  }

  all(require: 'all' | 'survivors'): number[] {
    if (require === 'all') this.#requireAll()
    const members = [...this.#local.links, ...this.members.flatMap(({ ranks }) => ranks)]
    return members.map(({ rank }) => rank.rank)
  }

  /** @throws CkptError `node_lost` */
  #requireAll(): void {
    const { missing } = this
    if (missing.length === 0) return
    throw new CkptError('node_lost', missing.map(({ message }) => message).join('; '))
  }

  /** In order, guests not counted. */
  get missing(): MissingNode[] {
    const missing: MissingNode[] = []
    for (let node = 1; node < this.#nodeCount; node++) {
      const known = this.#known[node]
      if (known === undefined) {
        missing.push({ node, message: `node ${node} has not joined`, ranks: [] })
      } else if (known.node.lost !== null) {
        const { message } = known.node.lost
        missing.push({ node, message, ranks: this.#numbersOf(known) })
      }
    }
    return missing
  }

  /** What a daemon holds that has never come nobody knows. @throws CkptError `node_lost` */
  requireKnown(): void {
    const unknown = this.missing.find(({ node }) => this.#known[node] === undefined)
    if (unknown !== undefined) throw new CkptError('node_lost', unknown.message)
  }

  #numbersOf({ node, rankCount }: KnownNode): number[] {
    const first = this.#firstRank(node.node)
    if (first === null) return []
    return Array.from({ length: rankCount }, (_, rank) => first + rank)
  }

  async use(ranks: readonly number[]): Promise<RankHandle[]> {
    const known = new Map(this.links.map((link) => [link.rank.rank, link]))
    const unknown = ranks.find((rank) => !known.has(rank))
    if (unknown !== undefined) this.#refuse(unknown)
    const own = ranks.filter((rank) => known.get(rank)?.node === 0)
    const used = await Promise.all([
      this.#local.use(own),
      ...this.nodes.map((node) => {
        const wanted = node.ranks.filter(({ rank }) => ranks.includes(rank.rank))
        return wanted.length === 0 ? ([] as RemoteRank[]) : node.use(wanted)
      }),
    ])
    const links = new Map(used.flat().map((link) => [link.rank.rank, link as RankHandle]))
    return ranks.map((rank) => links.get(rank) as RankHandle)
  }

  lost(rank: number): LostRank | null {
    for (const known of this.#known) {
      const failure = known?.node.lost ?? null
      if (failure === null || known === undefined) continue
      if (!this.#numbersOf(known).includes(rank)) continue
      return { node: known.node.node, failure: { ...failure, rank } }
    }
    return null
  }

  #refuse(rank: number): never {
    const lost = this.lost(rank)
    if (lost !== null) throw CkptError.from(lost.failure)
    throw new CkptError('bad_request', `there is no rank ${rank}`)
  }

  async quiet(ranks: readonly number[] = []): Promise<void> {
    // a guest's engine is in no update of others
    const guests = this.#guests.filter((guest) => {
      return guest.ranks.some(({ rank }) => ranks.includes(rank.rank))
    })
    const asked = [...this.members, ...guests].map((node) => node.ask({ op: 'quiet' }))
    await Promise.all([this.#local.quiet(), ...asked])
  }

  /** Other daemons keep their own. */
  keeps(address: string): boolean {
    return this.#local.keeps(address)
  }

  /** A new address for the engine's worker of this rank, at its own daemon. */
  address(rank: number): string {
    for (const node of this.nodes) {
      const own = node.ranks.findIndex((one) => one.rank.rank === rank)
      if (own === -1) continue
      return `ipc://${node.description.socketDir}/${socketName(own)}`
    }
    return this.#ownAddress(rank)
  }
}
