import { CkptError, type Failure } from '@ckpt/core'
import type { EngineHost } from '../../engines/host.ts'
import type { Ranks } from '../rank/handle.ts'
import type { Registry } from '../registry/registry.ts'
import { ClusterRanks } from './cluster-ranks.ts'
import { ClusterVersions } from './cluster-versions.ts'
import type { LeaderPost, NodeChannel, NodeDescription } from './messages.ts'
import { RemoteNode } from './remote-node.ts'

export interface LeaderParts {
  readonly registry: Pick<Registry, 'lease' | 'gather'>
  readonly pool: Ranks
  /** Of its own engines' workers. */
  readonly address: (rank: number) => string
  /** Daemons, this one included. */
  readonly nodes: number
}

/** The other daemons as the leader's updates use them. */
export class Leader {
  readonly ranks: ClusterRanks
  readonly versions: ClusterVersions

  constructor({ registry, pool, address, nodes }: LeaderParts) {
    this.ranks = new ClusterRanks(pool, nodes, address)
    const { ranks } = this
    this.versions = new ClusterVersions(
      registry,
      () => ranks.nodes,
      () => ranks.links.length,
    )
  }

  /** One has come, or come again. */
  joined(node: number, description: NodeDescription, channel: NodeChannel): void {
    this.ranks.join(new RemoteNode(node, description, channel, this.versions.layoutOf))
  }

  lost(node: number, failure: Failure): void {
    this.ranks.lose(node, failure)
  }

  /** Where the engines of a daemon's host are called from. */
  engines(node: number): EngineHost {
    return {
      call: async (call, signal) => this.#node(node).callEngine(call, signal),
      listener: async (address) => {
        try {
          return await this.#node(node).engineListener(address)
        } catch {
          // of a daemon that is gone nobody can see it
          return null
        }
      },
    }
  }

  #node(node: number): RemoteNode {
    const found = this.ranks.nodes.find((one) => one.node === node)
    if (found === undefined) throw new CkptError('node_lost', `node ${node} is not there`)
    return found
  }

  take(node: number, post: LeaderPost): void {
    this.ranks.nodes.find((one) => one.node === node)?.take(post)
  }
}
