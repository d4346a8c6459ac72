import type { EngineTarget } from '@ckpt/core'
import { CkptError } from '@ckpt/core'
import { usageError } from './exit.ts'

export interface EngineFlags {
  /** `--endpoint`, in rank order; each may hold `{host}`. */
  readonly endpoints: readonly string[]
  /** `--uds`: one socket for all endpoints, or one each. */
  readonly sockets: readonly string[]
  readonly engine: NonNullable<EngineTarget['engine']>
  /** Ranks of one engine: TP x PP x DP of one vLLM server. */
  readonly parallelSize: number
}

/**
 * Splits ranks 0 to `rankCount` into groups of `parallelSize` and gives each group its engine.
 *
 * @param peers other hosts of the daemon's cluster
 * @throws CommandError (usage) when ranks, group size and endpoints do not fit together
 */
export function engineTargets(
  flags: EngineFlags,
  rankCount: number,
  peers: number,
): [EngineTarget, ...EngineTarget[]] {
  const { parallelSize, sockets, engine } = flags
  const endpoints = flags.endpoints.map((endpoint) => checkEndpoint(endpoint, peers))
  if (sockets.length > 1 && sockets.length !== endpoints.length) {
    throw usageError(
      `${sockets.length} --uds for ${endpoints.length} --endpoint: give one, or one for each`,
    )
  }
  const wanted = endpoints.length * parallelSize
  if (rankCount !== wanted) throw usageError(mismatch(rankCount, endpoints.length, parallelSize))
  const targets = endpoints.map((url, group): EngineTarget => {
    const uds = sockets.length > 1 ? sockets[group] : sockets[0]
    const ranks = Array.from({ length: parallelSize }, (_, i) => group * parallelSize + i)
    return { url, ranks, engine, ...(uds === undefined ? {} : { uds }) }
  })
  return targets as [EngineTarget, ...EngineTarget[]]
}

function checkEndpoint(endpoint: string, peers: number): string {
  if (endpoint.includes('{host}') && peers > 0) {
    throw new CkptError(
      'not_supported',
      `--endpoint ${endpoint}: several hosts are not supported yet`,
    )
  }
  const url = endpoint.replaceAll('{host}', 'localhost').replace(/\/+$/, '')
  if (/^https?:\/\/[^\s/]+/.test(url) && URL.canParse(url)) return url
  throw usageError(`--endpoint '${endpoint}' is not a URL such as http://localhost:19730`)
}

function mismatch(rankCount: number, endpoints: number, parallelSize: number): string {
  const daemon = `the daemon has ${rankCount} ${rankCount === 1 ? 'rank' : 'ranks'}`
  const asked = `${endpoints} --endpoint with --inference-parallel-size ${parallelSize}`
  if (rankCount % parallelSize === 0) {
    return `${daemon}, ${rankCount / parallelSize} groups of ${parallelSize}, not ${asked}: give an endpoint for each group`
  }
  const wanted = endpoints * parallelSize
  return `${daemon}, which does not fit ${asked}: start it with \`ckpt serve --ranks ${wanted}\``
}
