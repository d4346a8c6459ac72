import type { ClusterTimes } from '@ckpt/core/cluster/membership'
import { parseNodeInfo } from '@ckpt/core/cluster/node-info'
import { openLibrary } from '@ckpt/cuda'
import { readToken } from '../http/auth.ts'
import type { TcpAddress } from '../options.ts'
import type { LibraryOptions } from '../types.ts'
import { deriveKeys } from './keys.ts'
import { ClusterLink } from './link.ts'
import type { Cluster, ClusterEvents, NodeInfo } from './types.ts'

export type * from './types.ts'

/** How this daemon works together with others. */
export interface ClusterOptions {
  /** 0: the leader. */
  readonly nodeRank: number
  readonly nodes: number
  /** Where the leader listens; port 0 takes a free one. */
  readonly leader: TcpAddress
  /** File whose only line is the token that all daemons of the cluster have. */
  readonly tokenFile: string
  readonly times: ClusterTimes
}

const INCARNATION_BYTES = 16

/**
 * Joins the daemons that work together, and goes on joining them until `close`: the leader waits for its followers, a follower
 * for its leader, in whatever order they start.
 *
 * @example
 * const cluster = await openCluster(options, info, { kind: 'host' }, events)
 * const answer = await cluster.request(cluster.peers[0]!, { body: { ask: 'memory' }, parts: [] }, 1000)
 *
 * @throws CkptError `bad_request` of a token file that cannot be read; `cannot_listen` when the leader cannot bind its address
 */
export async function openCluster(
  options: ClusterOptions,
  info: NodeInfo,
  library: LibraryOptions,
  events: ClusterEvents,
): Promise<Cluster> {
  const { tokenFile, ...rest } = options
  const keys = deriveKeys(readToken(tokenFile, '--cluster-token-file'))
  const incarnation = crypto.getRandomValues(new Uint8Array(INCARNATION_BYTES)).toHex()
  const start = { ...rest, library, keys, incarnation, info: parseNodeInfo(info) }
  return ClusterLink.start(start, openLibrary(library), events)
}
