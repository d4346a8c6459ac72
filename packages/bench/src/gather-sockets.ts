import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError, CLUSTER_TIMES, type GatherAnswer } from '@ckpt/core'
import { modelTensors } from 'ckpt/cli/model-shapes'
import {
  type Cluster,
  type ClusterMessage,
  type ClusterNode,
  openCluster,
} from 'ckpt/daemon/cluster/cluster'
import { ClusterVersions } from 'ckpt/daemon/remote/cluster-versions'
import type { NodeChannel } from 'ckpt/daemon/remote/messages'
import { RemoteNode } from 'ckpt/daemon/remote/remote-node'
import { atMost } from './claims.ts'
import type { GatherNodesOptions } from './gather-nodes.ts'
import { measureRow, type Row } from './row.ts'

const NAME = 'model'
const SECONDS_MOST = 0.15
/** Kimi-K2 on 256 devices, as published: eight to a host. */
const CLUSTER = { model: 'kimi-k2', hosts: 32, ranksPerNode: 8 } as const

/**
 * A leader gathers what 32 hosts of 8 ranks hold, over real sockets: the first time all of it, then what has changed, which is
 * nothing. The hosts are one process, so that two processors serve all of them.
 */
export async function* socketRows(dir: string): AsyncGenerator<Row> {
  const { model, hosts, ranksPerNode } = CLUSTER
  await using stack = new AsyncDisposableStack()
  const tokenFile = join(dir, 'cluster-token')
  writeFileSync(tokenFile, crypto.randomUUID(), { mode: 0o600 })
  const nodes: RemoteNode[] = []
  const versions = new ClusterVersions(
    { lease: nothing, gather: nothing },
    () => nodes,
    () => hosts * ranksPerNode,
  )
  const leader = await lead(tokenFile)
  stack.defer(() => leader.close())
  const port = Number(leader.address.split(':').at(-1))
  const options = { model, name: NAME, nodes: hosts + 1, ranksPerNode, port, tokenFile }
  const followers = await startFollowers(options)
  stack.defer(async () => {
    followers.stdin.end()
    await followers.exited
  })
  while (leader.peers.length < hosts) await Bun.sleep(10)
  const tensors = modelTensors(model).length
  const where = `${model} of ${hosts * ranksPerNode} ranks on ${hosts} hosts`
  for (const [name, anew] of [
    [`${where}, the first time`, true],
    [`${where}, nothing changed`, false],
  ] as const) {
    let answer: GatherAnswer | null = null
    const row = await measureRow(
      { bench: 'gather', case: name, tensors },
      {
        prepare: () => {
          answer = null
          if (anew || nodes.length === 0) {
            const fresh = leader.peers.map((peer) => remoteNode(leader, peer, versions))
            nodes.splice(0, nodes.length, ...fresh)
          }
          if (anew) versions.forgetMerged()
        },
        run: async () => {
          answer = await versions.gather(NAME)
        },
        check: () => ({ compared: tensors, wrong: tensors - (answer?.tensors ?? 0) }),
      },
    )
    yield { ...row, claims: [atMost(`gather ${name}`, row.p50_s, SECONDS_MOST, 's')] }
  }
}

function nothing(): never {
  throw new CkptError('checkpoint_not_found', 'the leader holds nothing')
}

function lead(tokenFile: string): Promise<Cluster> {
  const { hosts } = CLUSTER
  const place = { nodeRank: 0, nodes: hosts + 1, leader: { host: '127.0.0.1', port: 0 } }
  return openCluster(
    { ...place, tokenFile, times: CLUSTER_TIMES },
    { host: 'leader', version: '0', ranks: [] },
    { kind: 'host' },
    {
      joined: () => {},
      lost: () => {},
      post: () => {},
      request: () => Promise.reject(new CkptError('not_supported', 'the leader is asked nothing')),
    },
  )
}

async function startFollowers(
  options: GatherNodesOptions,
): Promise<Bun.Subprocess<'pipe', 'pipe', 'inherit'>> {
  const program = join(import.meta.dir, 'gather-nodes.ts')
  const child = Bun.spawn([process.execPath, program, JSON.stringify(options)], {
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
  })
  const reader = child.stdout.getReader()
  const { done } = await reader.read()
  if (done) throw new Error('the followers did not start')
  reader.releaseLock()
  return child
}

function remoteNode(leader: Cluster, peer: ClusterNode, versions: ClusterVersions): RemoteNode {
  const channel: NodeChannel = {
    request: (message, limitMs) => leader.request(peer, message as ClusterMessage, limitMs),
    post: (message) => leader.post(peer, message as ClusterMessage),
  }
  const ranks = peer.info.ranks.map(({ device, kind, uuid }, rank) => {
    return { rank, device, deviceName: kind, key: uuid, uuid, numaNode: -1 }
  })
  const node = new RemoteNode(
    peer.nodeRank,
    { ranks, socketDir: '/', marks: [] },
    channel,
    versions.layoutOf,
  )
  node.number((peer.nodeRank - 1) * CLUSTER.ranksPerNode)
  return node
}
