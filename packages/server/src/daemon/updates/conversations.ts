import type { HeldVersion, RankInfo } from '../types.ts'
import type { EngineContact } from './contact.ts'
import type { JournalConversation } from './journal.ts'
import type { EngineSockets } from './sockets.ts'
import type { UpdateSpec } from './spec.ts'
import type { DirectRankOpening } from './team.ts'

/** Where the workers of an update's engines connect to, and whose each rank's is. */
export class UpdateConversations {
  /** Of each rank that converses. */
  readonly addresses: ReadonlyMap<number, string>
  readonly #spec: UpdateSpec
  readonly #contacts: readonly EngineContact[]

  /** Ranks without an engine have none, unless nobody is contacted: then whoever reads the map starts the workers. */
  constructor(
    spec: UpdateSpec,
    contacts: readonly EngineContact[],
    sockets: Pick<EngineSockets, 'address'>,
  ) {
    this.#spec = spec
    this.#contacts = contacts
    const contacted = contacts.length > 0
    const ranks = spec.ranks.filter((rank) => !contacted || this.contact(rank))
    this.addresses = new Map(ranks.map((rank) => [rank, sockets.address(rank)]))
  }

  contact(rank: number): EngineContact | undefined {
    return this.#contacts.find((one) => one.spec.ranks.includes(rank))
  }

  /** Of one engine always the same; null: nobody knows whose worker connects. */
  engineKey(rank: number): string | null {
    return this.contact(rank)?.spec.key ?? null
  }

  /** Of a rank in a direct update, all of whose engines are contacted. */
  readonly direct = (rank: number): DirectRankOpening => ({
    address: this.addresses.get(rank) as string,
    engine: this.engineKey(rank) as string,
    engineAt: this.contact(rank)?.at ?? null,
  })

  /** For whoever starts the workers itself. */
  publishedMap(ranks: readonly RankInfo[]): Record<string, string> {
    return Object.fromEntries(ranks.map(({ rank, key }) => [key, this.addresses.get(rank) ?? '']))
  }

  journalled({ version }: HeldVersion): JournalConversation[] {
    return [...this.addresses].map(([rank, address]) => {
      const contact = this.contact(rank)
      return {
        address,
        rank,
        dialect: contact?.dialect ?? null,
        engine_url: contact?.spec.url ?? null,
        uds: contact?.spec.uds ?? null,
        ...(contact?.spec.node ? { node: contact.spec.node } : {}),
        update_id: this.#spec.id,
        version,
      }
    })
  }
}
