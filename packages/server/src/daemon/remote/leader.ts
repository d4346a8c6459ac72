import { CkptError, type Failure, NODES_MAX } from '@ckpt/core'
import type { EngineHost } from '../../engines/host.ts'
import { log } from '../log.ts'
import type { Ranks } from '../rank/handle.ts'
import type { Registry } from '../registry/registry.ts'
import type { EngineMark } from '../updates/journal.ts'
import { ClusterRanks } from './cluster-ranks.ts'
import { ClusterVersions } from './cluster-versions.ts'
import type { LeaderPost, NodeChannel, NodeDescription } from './messages.ts'
import { Pulls } from './pulls.ts'
import { RemoteNode } from './remote-node.ts'

/** How long the engine of a guest that has gone is remembered. */
const GUEST_MS = 60_000

export interface LeaderParts {
  readonly registry: Pick<Registry, 'lease' | 'gather'>
  readonly pool: Ranks
  /** Of its own engines' workers. */
  readonly address: (rank: number) => string
  /** Daemons, this one included. */
  readonly nodes: number
  /** Where others can join; null: that cannot be told. */
  readonly listens?: () => string | null
  /** One is gone, with these ranks. */
  readonly lost: (ranks: readonly number[], failure: Failure) => void
  /** A guest has gone. Its engine is remembered until then. */
  readonly gone: (guest: number) => void
  /** One has come, and tells what it holds against its engines. */
  readonly joined: (node: number, marks: readonly EngineMark[]) => Promise<void>
}

/** The other daemons as the leader's updates use them. */
export class Leader {
  readonly ranks: ClusterRanks
  readonly versions: ClusterVersions
  /** What guests copy into their own memory. */
  readonly pulls: Pulls
  readonly #parts: Pick<LeaderParts, 'lost' | 'joined' | 'gone'>

  constructor(parts: LeaderParts) {
    const { registry, pool, address, nodes } = parts
    this.#parts = parts
    this.ranks = new ClusterRanks(pool, nodes, address)
    const { ranks } = this
    this.versions = new ClusterVersions(
      registry,
      (wanted) =>
        ranks.nodes.filter(({ node, ranks: own }) => {
          return node < NODES_MAX || own.some(({ rank }) => wanted.includes(rank.rank))
        }),
      () => ranks.all('survivors').length,
      parts.listens,
    )
    this.pulls = new Pulls(this.versions, ranks)
  }

  /** One has come, or come again. */
  joined(node: number, description: NodeDescription, channel: NodeChannel): void {
    const remote = new RemoteNode(node, description, channel, this.versions.layoutOf)
    this.ranks.join(remote)
    void this.#parts
      .joined(node, description.marks)
      .then(() => remote.post({ op: 'marks_taken' }))
      .catch((error: unknown) => {
        const { message } = CkptError.wrap(error)
        log.warn('the marks of the engines of node {node} are not kept: {message}', {
          node,
          message,
        })
      })
  }

  lost(node: number, failure: Failure): void {
    const found = this.ranks.nodes.find((one) => one.node === node)
    this.pulls.lose(node)
    this.ranks.lose(node, failure)
    this.#parts.lost(found?.ranks.map(({ rank }) => rank.rank) ?? [], failure)
    // what its update still notes of the engine comes within this time
    if (node >= NODES_MAX) setTimeout(() => this.#parts.gone(node), GUEST_MS).unref()
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
