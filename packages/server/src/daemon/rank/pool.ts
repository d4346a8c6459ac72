import type { Library } from '@ckpt/cuda'
import { CkptError, type Failure } from '@ckpt/core'
import type { LibraryOptions, RankInfo } from '../types.ts'
import { RankLink } from './link.ts'

/** Is told why a Worker died, also while no update uses it. */
type OnDead = (failure: Failure) => void

/** The rank Workers of the daemon. One that dies is replaced before the next update. */
export class RankPool {
  readonly #options: LibraryOptions
  readonly #library: Library
  readonly #onDead: OnDead
  readonly #links: RankLink[]
  /** Rings of Workers that were replaced: nobody can free them. */
  #lostBytes = 0

  private constructor(
    options: LibraryOptions,
    library: Library,
    onDead: OnDead,
    links: RankLink[],
  ) {
    this.#options = options
    this.#library = library
    this.#onDead = onDead
    this.#links = links
  }

  static async start(
    options: LibraryOptions,
    library: Library,
    ranks: readonly RankInfo[],
    onDead: OnDead = () => {},
  ): Promise<RankPool> {
    const started = await Promise.allSettled(
      ranks.map((rank) => RankLink.start(options, library, rank, onDead)),
    )
    const links = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    const failed = started.find((one) => one.status === 'rejected')
    if (failed !== undefined) {
      await Promise.all(links.map((link) => link.close()))
      throw CkptError.wrap(failed.reason)
    }
    return new RankPool(options, library, onDead, links)
  }

  get links(): readonly RankLink[] {
    return this.#links
  }

  /** Bytes of rings that an engine may still read. */
  get quarantinedBytes(): number {
    return this.#links.reduce((sum, link) => sum + link.quarantinedBytes, this.#lostBytes)
  }

  /** The links of these ranks, each with a living Worker. */
  async use(ranks: readonly number[]): Promise<RankLink[]> {
    return Promise.all(
      ranks.map(async (rank) => {
        const index = this.#links.findIndex((link) => link.rank.rank === rank)
        const link = this.#links[index]
        if (link === undefined) throw new CkptError('bad_request', `there is no rank ${rank}`)
        if (link.dead === null) return link
        if (link.dead.code === 'device_lost') throw CkptError.from(link.dead)
        const fresh = await RankLink.start(this.#options, this.#library, link.rank, this.#onDead)
        this.#links[index] = fresh
        this.#lostBytes += link.quarantinedBytes
        return fresh
      }),
    )
  }

  async close(): Promise<void> {
    await Promise.all(this.#links.map((link) => link.close()))
  }
}
