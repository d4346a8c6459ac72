import { CkptError } from '@ckpt/core'
import type { RemoteBuffers } from '../memory/protocol.ts'
import { requireVersion } from '../registry/lease.ts'
import type { VersionLease } from '../types.ts'
import type { ClusterRanks } from './cluster-ranks.ts'
import type { ClusterVersions } from './cluster-versions.ts'
import type { PullAnswer, PullRequest } from './messages.ts'

interface Pull {
  /** null: it is being asked for. */
  lease: VersionLease | null
}

/** What guests copy into their own memory out of the daemons', while they do: the leader's side. */
export class Pulls {
  readonly #versions: Pick<ClusterVersions, 'hold' | 'layoutOf'>
  readonly #ranks: Pick<ClusterRanks, 'requireKnown'>
  /** By the guest's node rank. */
  readonly #running = new Map<number, Pull>()

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
    { name, version: wanted }: Extract<PullRequest, { op: 'pull' }>,
  ): Promise<PullAnswer> {
    this.#ranks.requireKnown()
    // one that is not waited for any more
    this.lose(node)
    const pull: Pull = { lease: null }
    this.#running.set(node, pull)
    try {
      const lease = await this.#versions.hold(name, `pull of guest ${node}`)
      pull.lease = lease
      const { version } = lease
      requireVersion(version, wanted)
      // who reads over the network does not see how far a file has been read
      await lease.complete
      const served = await lease.serve(new Set(version.ownerNodes))
      if (this.#running.get(node) !== pull) throw new CkptError('node_lost', 'the guest is gone')
      const { columns } = this.#versions.layoutOf(version.table)
      return { version: version.version, columns, remotes: served as RemoteBuffers[] }
    } catch (error) {
      this.#end(node, pull)
      throw error
    }
  }

  /**
   * Everything was read.
   *
   * @throws CkptError `file_changed`, `node_lost`, `checkpoint_invalid`: it may have been something else
   */
  async end(node: number): Promise<void> {
    const pull = this.#running.get(node)
    if (pull === undefined) throw new CkptError('not_found', 'this guest copies nothing')
    try {
      await pull.lease?.check?.()
    } finally {
      this.#end(node, pull)
    }
  }

  /** What the guest has asked for is not wanted any more. */
  lose(node: number): void {
    const pull = this.#running.get(node)
    if (pull !== undefined) this.#end(node, pull)
  }

  #end(node: number, pull: Pull): void {
    if (this.#running.get(node) === pull) this.#running.delete(node)
    pull.lease?.release(false)
  }
}
