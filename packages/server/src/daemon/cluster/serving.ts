import { hostname } from 'node:os'
import {
  CkptError,
  type ClusterStatus,
  type Failure,
  NODES_MAX,
  type StatusAnswer,
} from '@ckpt/core'
import { version } from '../../../package.json'
import type { DaemonApp } from '../http/app.ts'
import { log } from '../log.ts'
import {
  CALL_LIMIT_MS,
  type LeaderPost,
  type NodeChannel,
  NodeDescription,
  type NodePost,
  type NodeRequest,
  type PullRequest,
  UPDATE_LIMIT_MS,
} from '../remote/messages.ts'
import { pack, unpack } from '../remote/pack.ts'
import type { LibraryOptions, RankInfo } from '../types.ts'
import type { ClusterPlace, Updates } from '../updates/updates.ts'
import { type Cluster, type ClusterOptions, openCluster } from './cluster.ts'
import {
  type ApiAnswer,
  type ApiCancel,
  type ApiPost,
  type ApiRequest,
  ForwardedCalls,
  Forwarder,
} from './forwarding.ts'
import type { ClusterMessage, ClusterNode } from './types.ts'

const STATUS_LIMIT_MS = 2000
/** No stream answers it. */
const STATUS_CALL = -1

type Request = NodeRequest | ApiRequest | PullRequest | { readonly op: 'describe' }
type Post = NodePost | LeaderPost | ApiPost | ApiCancel

/** What the daemon does for the others, and they for it. */
export interface ServedDaemon {
  readonly updates: Updates
  readonly app: () => DaemonApp
}

/** This daemon among the others. */
export class DaemonCluster {
  /** Null: it leads. */
  readonly forwarder: Forwarder | null
  readonly #options: ClusterOptions
  #cluster: Cluster | null = null
  #served: ServedDaemon | null = null
  readonly #forwarded = new Map<number, ForwardedCalls>()

  constructor(options: ClusterOptions) {
    this.#options = options
    const ask = async (request: ApiRequest) =>
      (await this.#askLeader(request, UPDATE_LIMIT_MS)) as ApiAnswer
    const leads = options.nodeRank === 0
    this.forwarder = leads ? null : new Forwarder(ask, (cancel) => this.#postLeader(cancel))
  }

  /** How its updates take part. */
  get place(): ClusterPlace {
    const { nodeRank, nodes } = this.#options
    if (nodeRank === 0) {
      return { role: 'leader', nodes, listens: () => joinable(this.#cluster?.address ?? null) }
    }
    return { role: 'follower', post: (post) => this.#postLeader(post) }
  }

  /** Joins the others, and goes on joining them until {@link close}. @throws CkptError as `openCluster` */
  async open(
    library: LibraryOptions,
    ranks: readonly RankInfo[],
    served: ServedDaemon,
  ): Promise<void> {
    this.#served = served
    const info = {
      host: hostname(),
      version,
      ranks: ranks.map(({ device, deviceName, uuid }) => ({ device, kind: deviceName, uuid })),
    }
    this.#cluster = await openCluster(this.#options, info, library, {
      joined: (node) => this.#joined(node),
      lost: (node, failure) => this.#lost(node, failure),
      post: (from, message) => this.#take(from, unpack(message) as Post),
      request: async (from, message) =>
        pack(await this.#answer(from, unpack(message) as Request)) as ClusterMessage,
    })
    const { nodeRank, nodes, address, isLeader } = this.#cluster
    const what = isLeader
      ? 'node 0 of {nodes}, the leader, waits for the others at {address}'
      : 'node {nodeRank} of {nodes} joins the leader at {address}'
    log.info(what, { nodeRank, nodes, address })
  }

  get #opened(): { cluster: Cluster; served: ServedDaemon } {
    if (this.#cluster === null || this.#served === null) {
      throw new CkptError('leader_lost', 'the daemon is starting')
    }
    return { cluster: this.#cluster, served: this.#served }
  }

  #joined(node: ClusterNode): void {
    const { nodeRank, session, info } = node
    const { host, version: theirs } = info
    const who = nodeRank < NODES_MAX ? 'node {nodeRank} ({host})' : 'a guest on {host}'
    log.info(`${who} has joined, session {session}`, { nodeRank, host, session })
    if (theirs !== version) {
      const versions = { nodeRank, theirs, version }
      log.warn('node {nodeRank} runs ckpt {theirs}, this one {version}', versions)
    }
    // a guest without ranks takes part in no update
    if (this.forwarder !== null || info.ranks.length === 0) return
    void this.#describe(node).catch((error: unknown) => {
      const { message } = CkptError.wrap(error)
      log.warn('node {nodeRank} ({host}) is of no use: {message}', { nodeRank, host, message })
    })
  }

  async #describe(node: ClusterNode): Promise<void> {
    const { cluster, served } = this.#opened
    const ask = pack({ op: 'describe' } satisfies Request) as ClusterMessage
    const answer = await cluster.request(node, ask, CALL_LIMIT_MS)
    const description = NodeDescription.assert(unpack(answer))
    const channel: NodeChannel = {
      request: (message, limitMs) => cluster.request(node, message as ClusterMessage, limitMs),
      post: (message) => cluster.post(node, message as ClusterMessage),
    }
    served.updates.leader?.joined(node.nodeRank, description, channel)
  }

  #lost(node: ClusterNode, failure: Failure): void {
    const { code, message } = failure
    // it comes for one call, and goes
    if (node.nodeRank >= NODES_MAX) {
      log.info('a guest on {host} has left: {message}', { host: node.info.host, message })
    } else log.warn('{message} ({code})', { code, message })
    const { updates } = this.#opened.served
    this.#forwarded.get(node.nodeRank)?.close()
    this.#forwarded.delete(node.nodeRank)
    this.forwarder?.lose(message)
    updates.leader?.lost(node.nodeRank, failure)
    void updates.node?.lose(failure)
  }

  async #answer(from: ClusterNode, request: Request): Promise<unknown> {
    const updates = this.#served?.updates
    if (updates === undefined) throw new CkptError('internal', 'the daemon is starting')
    if (request.op === 'describe') return updates.node?.describe() ?? null
    if (request.op === 'api') return this.#forwardedOf(from).answer(request)
    if (request.op === 'pull' || request.op === 'end_pull') return this.#pull(from, request)
    if (updates.node === null) throw new CkptError('not_supported', 'this daemon leads')
    return updates.node.answer(request)
  }

  async #pull({ nodeRank }: ClusterNode, request: PullRequest): Promise<unknown> {
    const { leader } = this.#opened.served.updates
    if (leader === null) throw new CkptError('not_supported', 'this daemon does not lead')
    if (request.op === 'pull') return leader.pulls.begin(nodeRank, request)
    await leader.pulls.end(nodeRank)
    return null
  }

  #forwardedOf(from: ClusterNode): ForwardedCalls {
    const { cluster, served } = this.#opened
    const known = this.#forwarded.get(from.nodeRank)
    if (known !== undefined) return known
    const post = (told: ApiPost) => cluster.post(from, pack(told) as ClusterMessage)
    const fresh = new ForwardedCalls(served.app, post)
    this.#forwarded.set(from.nodeRank, fresh)
    return fresh
  }

  #take(from: ClusterNode, post: Post): void {
    const { updates } = this.#opened.served
    switch (post.op) {
      case 'api_part':
      case 'api_end':
        return this.forwarder?.take(post)
      case 'api_cancel':
        return this.#forwarded.get(from.nodeRank)?.cancel(post.call)
      case 'event':
      case 'progress':
      case 'settled':
        return updates.leader?.take(from.nodeRank, post)
      default:
        return updates.node?.take(post)
    }
  }

  async #askLeader(request: Request, limitMs: number): Promise<unknown> {
    const { cluster } = this.#opened
    const [leader] = cluster.peers
    if (leader === undefined) {
      throw new CkptError('leader_lost', leaderAway(cluster))
    }
    const message = pack(request) as ClusterMessage
    return unpack(await cluster.request(leader, message, limitMs))
  }

  /** Nobody waits for what a leader that is gone was to be told. */
  #postLeader(post: Post): void {
    const [leader] = this.#cluster?.peers ?? []
    if (leader !== undefined) this.#cluster?.post(leader, pack(post) as ClusterMessage)
  }

  /** As `GET /v1/status` shows it. @param led what the leader of this one says of itself */
  status(led: StatusAnswer | null): ClusterStatus {
    const { cluster, served } = this.#opened
    const { nodeRank, nodes, isLeader, epoch, peers } = cluster
    const counted = isLeader ? peers : cluster.members
    const members = counted.filter((one) => one.nodeRank < NODES_MAX).length
    const firstRank = served.updates.node?.firstRank ?? null
    const missing = this.#missing() ?? led?.cluster?.missing
    return {
      node_rank: nodeRank,
      nodes,
      leader: isLeader,
      epoch,
      joined: isLeader ? members + 1 : members,
      ...(firstRank === null ? {} : { first_rank: firstRank }),
      peers: peers.map(({ nodeRank: peer, session, info: { host, ranks } }) => ({
        node_rank: peer,
        host,
        ranks: [...ranks],
        session,
      })),
      ...(missing === undefined ? {} : { missing }),
    }
  }

  /** Undefined: of a follower with a leader, which knows it. */
  #missing(): ClusterStatus['missing'] {
    const { cluster, served } = this.#opened
    const { leader } = served.updates
    if (leader !== null) {
      return leader.ranks.missing.map(({ node: node_rank, ...rest }) => {
        return { node_rank, message: rest.message, ranks: [...rest.ranks] }
      })
    }
    if (cluster.peers.length > 0) return undefined
    return [{ node_rank: 0, message: leaderAway(cluster), ranks: [] }]
  }

  /** Of a follower's leader; null: it leads, or its leader does not answer soon. */
  async leaderStatus(): Promise<StatusAnswer | null> {
    const request = { op: 'api', call: STATUS_CALL, method: 'GET', path: '/v1/status' } as const
    if (this.forwarder === null) return null
    try {
      const answer = await this.#askLeader({ ...request, body: null }, STATUS_LIMIT_MS)
      const { status, body } = answer as ApiAnswer
      return status === 200 ? (JSON.parse(body ?? '') as StatusAnswer) : null
    } catch {
      return null
    }
  }

  async close(): Promise<void> {
    await this.#cluster?.close()
  }
}

function leaderAway({ address, alone }: Cluster): string {
  return alone ?? `the leader at ${address} has not answered yet`
}

/** Whoever listens at every address of its host is not told which one others reach. */
function joinable(address: string | null): string | null {
  const place = address?.replace('tcp://', '') ?? ''
  return /^(|(0\.0\.0\.0|\[::\]|\*):.*)$/.test(place) ? null : place
}
