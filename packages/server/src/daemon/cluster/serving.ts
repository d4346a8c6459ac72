import { hostname } from 'node:os'
import { CkptError, type ClusterStatus } from '@ckpt/core'
import { version } from '../../../package.json'
import { log } from '../log.ts'
import type { LibraryOptions, RankInfo } from '../types.ts'
import { type Cluster, type ClusterEvents, type ClusterOptions, openCluster } from './cluster.ts'

/** The cluster of a daemon that serves these ranks: who comes and goes is logged, and nothing can be asked of it yet. */
export async function openDaemonCluster(
  options: ClusterOptions,
  library: LibraryOptions,
  ranks: readonly RankInfo[],
): Promise<Cluster> {
  const info = {
    host: hostname(),
    version,
    ranks: ranks.map(({ device, deviceName, uuid }) => ({ device, kind: deviceName, uuid })),
  }
  const cluster = await openCluster(options, info, library, EVENTS)
  const { nodeRank, nodes, address, isLeader } = cluster
  const what = isLeader
    ? 'node 0 of {nodes}, the leader, waits for the others at {address}'
    : 'node {nodeRank} of {nodes} joins the leader at {address}'
  log.info(what, { nodeRank, nodes, address })
  return cluster
}

const EVENTS: ClusterEvents = {
  joined({ nodeRank, session, info: { host, version: theirs } }) {
    log.info('node {nodeRank} ({host}) has joined, session {session}', { nodeRank, host, session })
    if (theirs === version) return
    log.warn('node {nodeRank} runs ckpt {theirs}, this one {version}', {
      nodeRank,
      theirs,
      version,
    })
  },
  lost: (_, { code, message }) => log.warn('{message} ({code})', { code, message }),
  post: () => {},
  async request() {
    throw new CkptError('not_supported', 'this daemon takes no requests of other daemons')
  },
}

/** As `GET /v1/status` shows it. */
export function clusterStatus({ nodeRank, nodes, isLeader, epoch, peers }: Cluster): ClusterStatus {
  return {
    node_rank: nodeRank,
    nodes,
    leader: isLeader,
    epoch,
    peers: peers.map(({ nodeRank: peer, session, info: { host, ranks } }) => ({
      node_rank: peer,
      host,
      ranks: [...ranks],
      session,
    })),
  }
}
