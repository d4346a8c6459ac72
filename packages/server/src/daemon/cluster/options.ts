import { randomInt } from 'node:crypto'
import { CkptError, CLUSTER_TIMES, NODE_RANKS, NODES_MAX } from '@ckpt/core'
import {
  type Environment,
  parseTcpAddress,
  type ServeOptions,
  type TcpAddress,
} from '../options.ts'
import type { ClusterOptions } from './cluster.ts'

type Told = Pick<ServeOptions, 'leader' | 'nodeRank' | 'nodes' | 'clusterTokenFile' | 'guest'>

/** `--leader env`: a stray MASTER_ADDR must not make a cluster of a daemon that was to be alone. */
const FROM_ENVIRONMENT = 'env'
const PORT_MAX = 65_535

/**
 * The cluster that the daemon belongs to; null: it works alone. `--leader HOST:PORT`, `--node-rank` and `--nodes` belong
 * together. With `--leader env` what no flag says is taken from the variables of torchrun, Slurm and Kubernetes' training operators:
 *
 * | option | variables, the first that is set |
 * |---|---|
 * | host of the leader | `MASTER_ADDR` |
 * | port of the leader | `CKPT_LEADER_PORT`; `MASTER_PORT` + 1, because torch's store listens at `MASTER_PORT` |
 * | `--node-rank` | `GROUP_RANK` (torchrun's workers), `NODE_RANK`, `SLURM_NODEID`, `RANK` where `LOCAL_WORLD_SIZE` is not above 1 |
 * | `--nodes` | `GROUP_WORLD_SIZE`, `NNODES`, `SLURM_NNODES`, `WORLD_SIZE` where `LOCAL_WORLD_SIZE` is not above 1 |
 *
 * @throws CkptError `bad_request`
 */
export function clusterOptions(told: Told, env: Environment = process.env): ClusterOptions | null {
  if (told.guest) return guestOptions(told)
  const fromEnvironment = told.leader === FROM_ENVIRONMENT
  const nodes = told.nodes ?? (fromEnvironment ? nodesOf(env) : null)
  const nodeRank = told.nodeRank ?? (fromEnvironment ? nodeRankOf(env) : null)
  if (nodes === null && nodeRank === null && told.leader === null) return null
  if (nodes !== null) checkNodes(nodes, nodeRank ?? 0)
  if (nodes === 1) return null
  if (nodes === null || nodeRank === null || told.leader === null) {
    throw refuse(
      '--leader HOST:PORT, --node-rank K and --nodes N belong together: each daemon of a cluster is told all three',
    )
  }
  const leader = fromEnvironment ? leaderOf(env) : leaderAddress(told.leader, nodeRank)
  if (told.clusterTokenFile === null) {
    throw refuse(
      '--nodes above 1 needs --cluster-token-file: make one with `openssl rand -hex 32 >FILE; chmod 600 FILE` and copy it to every node',
    )
  }
  return { nodeRank, nodes, leader, tokenFile: told.clusterTokenFile, times: CLUSTER_TIMES }
}

/** Its node rank is drawn: the leader refuses one that lives already. */
function guestOptions({ leader: told, clusterTokenFile: tokenFile }: Told): ClusterOptions {
  if (told === null || tokenFile === null) throw refuse('a guest needs a leader and its token')
  const leader = leaderAddress(told, NODES_MAX)
  const nodeRank = randomInt(NODES_MAX, NODE_RANKS)
  return { nodeRank, nodes: NODES_MAX, leader, tokenFile, times: CLUSTER_TIMES }
}

function checkNodes(nodes: number, nodeRank: number): void {
  if (!Number.isSafeInteger(nodes) || nodes < 1 || nodes > NODES_MAX) {
    throw refuse(`--nodes is ${nodes}, it must lie in [1, ${NODES_MAX}]`)
  }
  if (Number.isSafeInteger(nodeRank) && nodeRank >= 0 && nodeRank < nodes) return
  throw refuse(`--node-rank is ${nodeRank}, with --nodes ${nodes} it must lie in [0, ${nodes - 1}]`)
}

function leaderAddress(text: string, nodeRank: number): TcpAddress {
  const address = parseTcpAddress(text, '--leader')
  if (address.port > 0 || nodeRank === 0) return address
  throw refuse(`--leader ${text}: a follower must know the port`)
}

function leaderOf(env: Environment): TcpAddress {
  const host = textOf(env, 'MASTER_ADDR')
  if (host === null) throw refuse('--leader env: MASTER_ADDR is not set')
  const own = wholeOf(env, 'CKPT_LEADER_PORT')
  const torch = wholeOf(env, 'MASTER_PORT')
  if (own === null && torch === null) {
    throw refuse('--leader env: neither CKPT_LEADER_PORT nor MASTER_PORT is set')
  }
  const port = own ?? torch! + 1
  if (port < 1 || port > PORT_MAX) throw refuse(`--leader env: ${port} is no port`)
  return parseTcpAddress(`${host.includes(':') ? `[${host}]` : host}:${port}`, 'MASTER_ADDR')
}

function nodeRankOf(env: Environment): number {
  const names = ['GROUP_RANK', 'NODE_RANK', 'SLURM_NODEID', ...perNode(env, 'RANK')]
  return firstOf(env, names, '--node-rank')
}

function nodesOf(env: Environment): number {
  const names = ['GROUP_WORLD_SIZE', 'NNODES', 'SLURM_NNODES', ...perNode(env, 'WORLD_SIZE')]
  return firstOf(env, names, '--nodes')
}

/** Where a node runs several processes these count processes, not nodes. */
function perNode(env: Environment, name: string): string[] {
  return (wholeOf(env, 'LOCAL_WORLD_SIZE') ?? 1) > 1 ? [] : [name]
}

function firstOf(env: Environment, names: readonly string[], option: string): number {
  for (const name of names) {
    const value = wholeOf(env, name)
    if (value !== null) return value
  }
  throw refuse(`--leader env: set ${option}, or ${names.join(' or ')}`)
}

function wholeOf(env: Environment, name: string): number | null {
  const text = textOf(env, name)
  if (text === null) return null
  if (!/^\d{1,9}$/.test(text)) throw refuse(`${name} is '${text}', it must be a whole number`)
  return Number(text)
}

function textOf(env: Environment, name: string): string | null {
  const text = env[name]?.trim()
  return text === undefined || text === '' ? null : text
}

function refuse(message: string): CkptError {
  return new CkptError('bad_request', message)
}
