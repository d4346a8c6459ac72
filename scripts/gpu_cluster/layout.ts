import { UsageError } from './options.ts'

/** How many ranks the leader and the follower have, and on which GPUs. */
export interface Layout {
  /** `2+2`: all on one GPU; `1/1`: each daemon has a GPU of its own. */
  readonly name: string
  /** By node rank. */
  readonly ranks: readonly [number, number]
  readonly shared: boolean
}

const RANKS_MAX = 8

/** @throws UsageError */
export function parseLayout(text: string): Layout {
  const match = /^([1-9])([+/])([1-9])$/.exec(text)
  const ranks = [Number(match?.[1]), Number(match?.[3])] as const
  if (match === null || ranks.some((count) => count > RANKS_MAX)) {
    throw new UsageError(`a layout is N+M (one GPU) or N/M (a GPU each), not '${text}'`)
  }
  return { name: text, ranks, shared: match[2] === '+' }
}

/** Global ranks of a daemon. */
export function ranksOf({ ranks }: Layout, node: number): number[] {
  const first = node === 0 ? 0 : ranks[0]
  return Array.from({ length: ranks[node] as number }, (_, rank) => first + rank)
}

/** What `--devices` of this node's daemon and engine is. */
export function devicesOf({ shared, ranks }: Layout, kind: 'cuda' | 'host', node: number): string {
  if (kind === 'cuda') return `cuda:${shared ? 0 : node}`
  return `host:${shared ? 1 : ranks[node]}`
}

/**
 * What the daemons of one machine need to take each other for two hosts: NCCL refuses two ranks on one GPU of one host unless they
 * are in one process. What is set already stays.
 */
export function environmentOf({ shared }: Layout, node: number): Record<string, string> {
  const wanted: Record<string, string> = {
    NCCL_SOCKET_IFNAME: 'lo',
    NCCL_IB_DISABLE: '1',
    NCCL_DEBUG: 'WARN',
  }
  if (shared) {
    wanted.NCCL_MULTI_RANK_GPU_ENABLE = '1'
    wanted.NCCL_HOSTID = `ckpt-node-${node}`
  }
  const missing = Object.entries(wanted).filter(([name]) => process.env[name] === undefined)
  return Object.fromEntries(missing)
}
