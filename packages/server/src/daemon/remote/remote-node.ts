import { CkptError, type Failure } from '@ckpt/core'
import type { HeldLayout } from '@ckpt/core/cluster/layout-columns'
import { reasonOf } from '../../engines/client.ts'
import type { EngineAnswer, EngineCall } from '../../engines/host.ts'
import type { EngineAddress } from '../../engines/url.ts'
import type { LayoutColumns } from './layouts.ts'
import {
  CALL_LIMIT_MS,
  type LeaderPost,
  type NodeAnswers,
  type NodeChannel,
  type NodeDescription,
  type NodePost,
  type NodeRequest,
  type RemoteTell,
  UPDATE_LIMIT_MS,
} from './messages.ts'
import { pack, unpack } from './pack.ts'
import { type NodeCalls, type NodePart, RemoteRank } from './remote-rank.ts'

/** What is answered when an update has come to it: the update has a deadline of its own. */
const SLOW: readonly NodeRequest['op'][] = ['complete', 'quiet', 'rank', 'engine']

/** What is said of a rank, even where it does not say of which. */
const OF_A_RANK: readonly Failure['code'][] = ['node_lost', 'device_lost']

export interface ToldLayout {
  /** See {@link LayoutColumns}. */
  readonly key: string
  readonly layout: HeldLayout
}

/** Another daemon as the leader sees it, from when it came until it is lost. */
export class RemoteNode implements NodeCalls {
  readonly node: number
  readonly description: NodeDescription
  part: NodePart = { lease: -1, firstOwner: 0 }
  /** What it has told last of each checkpoint. */
  readonly told = new Map<string, ToldLayout>()
  readonly #channel: NodeChannel
  readonly #layoutOf: (table: object) => LayoutColumns
  /** Layouts that it was seen to hold. */
  readonly #holds = new Set<string>()
  /** Its ranks need the same one at the same time. */
  readonly #holding = new Map<string, Promise<void>>()
  #ranks: RemoteRank[] = []
  #workers: number[] = []
  #lost: Failure | null = null
  #calls = 0

  constructor(
    node: number,
    description: NodeDescription,
    channel: NodeChannel,
    layoutOf: (table: object) => LayoutColumns,
  ) {
    this.node = node
    this.description = description
    this.#channel = channel
    this.#layoutOf = layoutOf
  }

  /** Its ranks follow each other from this one on. */
  number(firstRank: number): void {
    this.#ranks = this.description.ranks.map((_, own) => this.#makeRank(firstRank, own))
    this.post({ op: 'numbered', firstRank })
  }

  #makeRank(firstRank: number, own: number): RemoteRank {
    const info = this.description.ranks[own]
    if (info === undefined) throw new Error('there is no such rank')
    const rank = new RemoteRank({ ...info, rank: firstRank + own }, info.rank, this, this.#layoutOf)
    if (this.#lost !== null) rank.lose(this.#lost)
    return rank
  }

  get ranks(): readonly RemoteRank[] {
    return this.#ranks
  }

  get lost(): Failure | null {
    return this.#lost
  }

  async ask<T extends NodeRequest['op']>(
    request: Extract<NodeRequest, { op: T }>,
  ): Promise<T extends keyof NodeAnswers ? NodeAnswers[T] : unknown> {
    if (this.#lost !== null) throw this.#named(this.#lost)
    const limitMs = SLOW.includes(request.op) ? UPDATE_LIMIT_MS : CALL_LIMIT_MS
    try {
      return unpack(await this.#channel.request(pack(request), limitMs)) as never
    } catch (error) {
      throw this.#named(CkptError.wrap(error).failure)
    }
  }

  /** Of a daemon that is lost its ranks are; it tells of its own numbers. */
  #named(failure: Failure): CkptError {
    const own = this.description.ranks.findIndex(({ rank }) => rank === failure.rank)
    const rank = this.#ranks[Math.max(0, own)]
    const told = rank !== undefined && (own !== -1 || OF_A_RANK.includes(failure.code))
    return CkptError.from(told ? { ...failure, rank: rank.rank.rank } : failure)
  }

  post(post: NodePost): void {
    if (this.#lost === null) this.#channel.post(pack(post))
  }

  tell(rank: number, run: number, tell: RemoteTell): void {
    this.post({ op: 'tell', rank, run, tell })
  }

  async hold(layout: LayoutColumns): Promise<string> {
    const { key } = layout
    const holding =
      this.#holding.get(key) ?? this.#hold(layout).finally(() => this.#holding.delete(key))
    this.#holding.set(key, holding)
    await holding
    return key
  }

  async #hold({ key, columns }: LayoutColumns): Promise<void> {
    if (this.#holds.has(key)) {
      const { held } = await this.ask({ op: 'layout', layout: key, columns: null })
      if (held) return
    }
    await this.ask({ op: 'layout', layout: key, columns })
    this.#holds.add(key)
  }

  /** Of these ranks of its own a Worker that has died is replaced. */
  async use(ranks: readonly RemoteRank[]): Promise<RemoteRank[]> {
    const places = ranks.map((rank) => this.#ranks.indexOf(rank))
    const own = places.map((place) => this.description.ranks[place]?.rank ?? -1)
    const { workers } = await this.ask({ op: 'use', ranks: own })
    const firstRank = this.#ranks[0]?.rank.rank ?? 0
    for (const [i, place] of places.entries()) {
      const worker = workers[i] as number
      const before = this.#workers[place]
      this.#workers[place] = worker
      // whatever it shared with others is gone
      if (before !== undefined && before !== worker) {
        this.#ranks[place] = this.#makeRank(firstRank, place)
      }
    }
    return places.map((place) => this.#ranks[place] as RemoteRank)
  }

  /** @throws CkptError as `EngineHost.call` */
  async callEngine(request: EngineCall, signal: AbortSignal): Promise<EngineAnswer> {
    if (signal.aborted) throw reasonOf(signal)
    const call = this.#calls++
    const aborted = Promise.withResolvers<never>()
    const end = () => {
      const reason = reasonOf(signal)
      this.post({ op: 'end_engine', call, failure: reason.failure })
      aborted.reject(reason)
    }
    signal.addEventListener('abort', end, { once: true })
    try {
      return await Promise.race([this.ask({ op: 'engine', call, request }), aborted.promise])
    } finally {
      signal.removeEventListener('abort', end)
    }
  }

  async engineListener(address: EngineAddress): Promise<string | null> {
    return (await this.ask({ op: 'engine_listener', address })).listener
  }

  take(post: LeaderPost): void {
    const place = this.description.ranks.findIndex(({ rank }) => rank === post.rank)
    this.#ranks[place]?.take(post)
  }

  /** It is gone: whatever its ranks take part in fails. */
  lose(failure: Failure): void {
    if (this.#lost !== null) return
    this.#lost = failure
    for (const rank of this.#ranks) rank.lose(failure)
  }
}
