import { CkptError } from '@ckpt/core'
import type { RemoteBuffers } from '../memory/protocol.ts'
import { requireVersion } from '../registry/lease.ts'
import type { VersionLease } from '../types.ts'
import type { ClusterRanks } from './cluster-ranks.ts'
import type { ClusterVersions } from './cluster-versions.ts'
import type { PullAnswer, PullRequest } from './messages.ts'

interface Pull {
  readonly node: number
  readonly number: number
  /** null: it is being asked for. */
  lease: VersionLease | null
}

/** What guests copy into their own memory out of the daemons', while they do: the leader's side. */
export class Pulls {
  readonly #versions: Pick<ClusterVersions, 'hold' | 'layoutOf'>
  readonly #ranks: Pick<ClusterRanks, 'requireKnown'>
  readonly #running = new Set<Pull>()

  constructor(
    versions: Pick<ClusterVersions, 'hold' | 'layoutOf'>,
    ranks: Pick<ClusterRanks, 'requireKnown'>,
  ) {
    this.#versions = versions
    this.#ranks = ranks
  }

  /**
   * @param node rank of the guest
   * @throws CkptError as `ClusterVersions.lease`; `node_lost` while a daemon has never come; `not_supported` where a daemon has no UCX
   */
  async begin(
    node: number,
    { pull: number, name, version: wanted }: Extract<PullRequest, { op: 'pull' }>,
  ): Promise<PullAnswer> {
    this.#ranks.requireKnown()
    const pull: Pull = { node, number, lease: null }
    this.#running.add(pull)
    try {
      const lease = await this.#versions.hold(name, `pull ${number} of guest ${node}`)
      pull.lease = lease
      const { version } = lease
      requireVersion(version, wanted)
      // who reads over the network does not see how far a file has been read
      await lease.complete
      const served = await lease.serve(new Set(version.ownerNodes))
      if (!this.#running.has(pull)) throw new CkptError('node_lost', 'the guest is gone')
      const { columns } = this.#versions.layoutOf(version.table)
      return { version: version.version, columns, remotes: served as RemoteBuffers[] }
    } catch (error) {
      this.#end(pull)
      throw error
    }
  }

  /**
   * Everything was read.
   *
   * @throws CkptError `file_changed`, `node_lost`, `checkpoint_invalid`: it may have been something else
   */
  async end(node: number, number: number): Promise<void> {
    const pull = [...this.#running].find((one) => one.node === node && one.number === number)
    if (pull === undefined) throw new CkptError('not_found', `there is no pull ${number}`)
    try {
      await pull.lease?.check?.()
    } finally {
      this.#end(pull)
    }
  }

  /** The guest is gone. */
  lose(node: number): void {
    for (const pull of this.#running) if (pull.node === node) this.#end(pull)
  }

  #end(pull: Pull): void {
    this.#running.delete(pull)
    pull.lease?.release(false)
  }
}
