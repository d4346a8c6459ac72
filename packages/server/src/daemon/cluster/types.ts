import type { ClusterNode, Failure } from '@ckpt/core'

export type { ClusterNode, NodeInfo } from '@ckpt/core'

/** One message between daemons: a body that can be JSON, and binary parts, which never become JSON. */
export interface ClusterMessage {
  readonly body: unknown
  /** Each at most 1 GiB, all at most 2 GiB. What is sent is copied first. */
  readonly parts: readonly Uint8Array[]
}

/** What the upper layer is told. None of these may throw; `request` may reject. */
export interface ClusterEvents {
  /** Leader: a follower has joined. Follower: the leader has welcomed it. */
  joined(node: ClusterNode): void
  /** With `node_lost` or `leader_lost`, which the requests that waited for it have been rejected with. */
  lost(node: ClusterNode, failure: Failure): void
  /** A request of the other side; the answer or the CkptError that it rejects with goes back. */
  request(from: ClusterNode, message: ClusterMessage): Promise<ClusterMessage>
  /** One-way, in order with everything that side sends. */
  post(from: ClusterNode, message: ClusterMessage): void
  /** The members have changed; see {@link Cluster.members}. */
  changed?(epoch: number, members: readonly ClusterNode[]): void
}

/** The daemons that work together, as one of them sees them. Followers talk to the leader only. */
export interface Cluster {
  readonly nodeRank: number
  readonly nodes: number
  readonly isLeader: boolean
  /** Leader: its followers. Follower: the leader, or nobody. Living sessions only. */
  readonly peers: readonly ClusterNode[]
  /** Ascends with every change of the members, as the leader counts it. */
  readonly epoch: number
  /** Everyone as the leader has told last, itself with session 0: up to a heartbeat late. Of a follower without a leader: nobody. */
  readonly members: readonly ClusterNode[]
  /** Why a follower has no leader, as far as it knows; null: it has one, or has heard nothing yet. */
  readonly alone: string | null
  /** `tcp://HOST:PORT` that is bound or connected to, with what port 0 became. */
  readonly address: string
  /**
   * @throws CkptError that the other side rejects with; `node_lost` or `leader_lost` when its session is or gets over;
   * `update_timeout` after `limitMs`
   */
  request(node: ClusterNode, message: ClusterMessage, limitMs: number): Promise<ClusterMessage>
  /** Dropped when that session is over. */
  post(node: ClusterNode, message: ClusterMessage): void
  /** Tells the others. */
  close(): Promise<void>
}
