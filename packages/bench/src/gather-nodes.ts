/**
 * Followers of a cluster in a process of their own, each of which holds a part of a published model's tensors, without bytes: what
 * they tell of it is what daemons tell. Takes its options as JSON, prints a line when all have joined, and ends with its input.
 */
import { CLUSTER_TIMES, type SourceSpace, type TensorTable } from '@ckpt/core'
import { buildTable } from '@ckpt/core/checkpoint/build-table'
import { layoutDigest } from '@ckpt/core'
import { type Cluster, type ClusterMessage, openCluster } from 'ckpt/daemon/cluster/cluster'
import { type ModelName, modelTensors } from 'ckpt/cli/model-shapes'
import { layOutStriped } from 'ckpt/cli/plan-prediction'
import type { NodeRequest } from 'ckpt/daemon/remote/messages'
import { NodeLeases } from 'ckpt/daemon/remote/node-leases'
import { pack, unpack } from 'ckpt/daemon/remote/pack'
import type { HeldVersion } from 'ckpt/daemon/types'

export interface GatherNodesOptions {
  readonly model: ModelName
  readonly name: string
  /** With the leader, which holds none. */
  readonly nodes: number
  readonly ranksPerNode: number
  readonly port: number
  readonly tokenFile: string
}

const nobody = () => Promise.reject(new Error('nobody reads'))

if (import.meta.main) await run(JSON.parse(process.argv[2] ?? '') as GatherNodesOptions)

async function run(options: GatherNodesOptions): Promise<void> {
  const { table, sources } = layOutStriped(modelTensors(options.model), options.nodes - 1)
  const clusters: Cluster[] = []
  for (const owner of sources.keys()) {
    clusters.push(await follow(options, owner + 1, versionOf(options, table, sources, owner)))
  }
  while (clusters.some(({ peers }) => peers.length === 0)) await Bun.sleep(10)
  process.stdout.write('joined\n')
  await Bun.stdin.text()
  await Promise.all(clusters.map((cluster) => cluster.close()))
  process.exit(0)
}

function follow(
  options: GatherNodesOptions,
  nodeRank: number,
  held: HeldVersion,
): Promise<Cluster> {
  const { nodes, ranksPerNode, port, tokenFile } = options
  const leader = { host: '127.0.0.1', port }
  const lease = {
    version: held,
    complete: Promise.resolve(0),
    check: null,
    serve: nobody,
    release: () => {},
  }
  const gathered = { digest: held.layoutDigest, ranks: 0, tensors: 0, bytes: 0, seconds: 0 }
  const leases = new NodeLeases({ lease: () => lease, gather: () => gathered }, () => {})
  const ranks = Array.from({ length: ranksPerNode }, (_, device) => {
    return { device, kind: 'none', uuid: `${nodeRank}-${device}` }
  })
  const info = { host: `host-${nodeRank}`, version: '0', ranks }
  return openCluster(
    { nodeRank, nodes, leader, tokenFile, times: CLUSTER_TIMES },
    info,
    { kind: 'host' },
    {
      joined: () => {},
      lost: () => {},
      post: (_, message) => {
        const post = unpack(message) as { op: string; lease: number }
        if (post.op === 'end_lease') leases.end(post.lease, false)
      },
      request: async (_, message) => {
        const request = unpack(message) as NodeRequest
        if (request.op !== 'lease') throw new Error(`'${request.op}' is not asked`)
        return pack(leases.take(request)) as ClusterMessage
      },
    },
  )
}

/** What one owner holds, as a daemon that has no other. */
function versionOf(
  { name, ranksPerNode }: GatherNodesOptions,
  whole: TensorTable,
  sources: readonly SourceSpace[],
  owner: number,
): HeldVersion {
  const rows = whole.names.flatMap((tensor, i) => {
    if (whole.owners[i] !== owner) return []
    const [dtype, bytes, offset] = [whole.dtypes[i]!, whole.bytes[i]!, whole.offsets[i]!]
    return [{ name: tensor, dtype, shape: whole.shapes[i]!, bytes, owner: 0, offset }]
  })
  const table = buildTable(rows)
  const own = [sources[owner] as SourceSpace]
  return {
    name,
    version: null,
    serial: 0,
    table,
    sources: own,
    buffers: [],
    readings: [null],
    ownerRanks: [Array.from({ length: ranksPerNode }, (_, rank) => rank)],
    ownerNodes: [0],
    bytes: rows.reduce((sum, { bytes }) => sum + bytes, 0),
    layoutDigest: layoutDigest(table, own),
    files: [],
  }
}
