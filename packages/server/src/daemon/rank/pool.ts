import type { Library } from '@ckpt/cuda'
import { CkptError } from '@ckpt/core'
import type { LibraryOptions, RankInfo } from '../types.ts'
import type { Ranks } from './handle.ts'
import { RankLink, type RankWatcher } from './link.ts'
import { type StartThread, startThread } from './thread.ts'

/** For a Worker that is still at something: no call of it should take so long when nothing is asked of it any more. */
const ANSWER_MS = 3000

/** The rank Workers of the daemon. One that dies is replaced before the next update. */
export class RankPool implements Ranks {
  readonly #options: LibraryOptions
  readonly #library: Library
  readonly #watcher: RankWatcher | undefined
  readonly #spins: boolean
  readonly #starts: StartThread
  readonly #links: RankLink[]
  /** Rings of Workers that were replaced: nobody can free them. */
  #lostBytes = 0
  #closed = false
  /** Those that may still write an engine's memory. */
  readonly #replaced = new Set<RankLink>()

  private constructor(
    options: LibraryOptions,
    library: Library,
    watcher: RankWatcher | undefined,
    spins: boolean,
    starts: StartThread,
    links: RankLink[],
  ) {
    this.#options = options
    this.#library = library
    this.#watcher = watcher
    this.#spins = spins
    this.#starts = starts
    this.#links = links
  }

  static async start(
    options: LibraryOptions,
    library: Library,
    ranks: readonly RankInfo[],
    watcher?: RankWatcher,
    spins = false,
    starts: StartThread = startThread,
  ): Promise<RankPool> {
    const started = await Promise.allSettled(
      ranks.map((rank) => RankLink.start(options, library, rank, spins, watcher, starts)),
    )
    const links = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    const failed = started.find((one) => one.status === 'rejected')
    if (failed !== undefined) {
      await Promise.all(links.map((link) => link.close()))
      throw CkptError.wrap(failed.reason)
    }
    return new RankPool(options, library, watcher, spins, starts, links)
  }

  get links(): readonly RankLink[] {
    return this.#links
  }

  /** Bytes of rings that an engine may still read. */
  get quarantinedBytes(): number {
    return this.#links.reduce((sum, link) => sum + link.quarantinedBytes, this.#lostBytes)
  }

  keeps(address: string): boolean {
    return this.#links.some((link) => link.kept.has(address))
  }

  all(): number[] {
    return this.#links.map(({ rank }) => rank.rank)
  }

  /** They are this daemon's. */
  lost(): null {
    return null
  }

  async use(ranks: readonly number[]): Promise<RankLink[]> {
    return Promise.all(
      ranks.map(async (rank) => {
        const index = this.#links.findIndex((link) => link.rank.rank === rank)
        const link = this.#links[index]
        if (link === undefined) throw new CkptError('bad_request', `there is no rank ${rank}`)
        if (link.busy || link.owes) await answers(link)
        if (link.dead === null) return link
        if (this.#closed || link.dead.code === 'device_lost') throw CkptError.from(link.dead)
        const fresh = await RankLink.start(
          this.#options,
          this.#library,
          link.rank,
          this.#spins,
          this.#watcher,
          this.#starts,
        )
        if (this.#closed) {
          await fresh.close()
          throw CkptError.from(link.dead)
        }
        this.#links[index] = fresh
        this.#replace(link, fresh)
        this.#lostBytes += link.quarantinedBytes
        return fresh
      }),
    )
  }

  #replace(link: RankLink, fresh: RankLink): void {
    void link.freePinned(fresh)
    this.#replaced.add(link)
    void link.quiet().then(() => this.#replaced.delete(link))
    for (const one of this.#replaced) if (one.rank.rank === link.rank.rank) one.endCopies(fresh)
  }

  async quiet(): Promise<void> {
    await Promise.all([...this.#replaced, ...this.#links].map((link) => link.quiet()))
  }

  async close(): Promise<void> {
    this.#closed = true
    await Promise.all(this.#links.map((link) => link.close()))
  }
}

/** When it is free for an update. One that does not come to it has hung in a native call, out of which nothing brings it. */
async function answers(link: RankLink): Promise<void> {
  const asked = link.readMemory().catch(() => {}) // it has died, which its link knows
  const late = Bun.sleep(ANSWER_MS).then(() => 'late' as const)
  if ((await Promise.race([asked, late])) === 'late') link.giveUp(ANSWER_MS)
}
