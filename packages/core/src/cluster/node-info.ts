import { type } from 'arktype'
import { Count } from '../api/bounds.ts'
import { parseBody } from '../api/parse-body.ts'

/** The most daemons of one cluster, without guests. */
export const NODES_MAX = 4096
/** Node ranks from {@link NODES_MAX} to this one are of guests: daemons that come for a while, and that nobody counts with. */
export const NODE_RANKS = 2 ** 20
/** The most guests at one time. */
export const GUESTS_MAX = 1024
/** The most ranks of one daemon. */
const NODE_RANKS_MAX = 1024

/** What a daemon of a cluster says of itself when it joins. */
export const NodeInfo = type({
  host: '1 <= string <= 255',
  ranks: type({ device: Count, kind: 'string <= 255', uuid: 'string <= 255' })
    .array()
    .atMostLength(NODE_RANKS_MAX),
  /** Of ckpt. */
  version: 'string <= 64',
})
export type NodeInfo = typeof NodeInfo.infer

/** @throws CkptError `bad_request` on what no other daemon would take */
export function parseNodeInfo(info: NodeInfo): NodeInfo {
  return parseBody(NodeInfo, info)
}
