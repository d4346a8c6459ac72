import type { EngineTarget } from '@ckpt/core'
import { isLoopback } from '../engines/url.ts'
import { usageError } from './exit.ts'
import { counted } from './format.ts'

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
 * Splits ranks 0 to `rankCount` into groups of `parallelSize` and gives each group its engine. Each engine is called from the host
 * of its first rank, so `localhost` is that one: endpoints for the engines of one host are taken for every host.
 *
 * @param hosts how many the daemon's cluster has
 * @throws CommandError (usage) when ranks, group size and endpoints do not fit together
 */
export function engineTargets(
  flags: EngineFlags,
  rankCount: number,
  hosts: number,
): [EngineTarget, ...EngineTarget[]] {
  const { parallelSize, sockets, engine } = flags
  const given = flags.endpoints.map(checkEndpoint)
  if (sockets.length > 1 && sockets.length !== given.length) {
    throw usageError(
      `${sockets.length} --uds for ${given.length} --endpoint: give one, or one for each`,
    )
  }
  const everyHost = given.every((url) => sockets.length > 0 || isLoopback(new URL(url)))
  const repeats = everyHost && rankCount === hosts * given.length * parallelSize ? hosts : 1
  const endpoints = Array.from({ length: repeats }, () => given).flat()
  const wanted = endpoints.length * parallelSize
  if (rankCount !== wanted) throw usageError(mismatch(rankCount, endpoints.length, parallelSize))
  const targets = endpoints.map((url, group): EngineTarget => {
    const uds = sockets.length > 1 ? sockets[group % sockets.length] : sockets[0]
    const ranks = Array.from({ length: parallelSize }, (_, i) => group * parallelSize + i)
    return { url, ranks, engine, ...(uds === undefined ? {} : { uds }) }
  })
  return targets as [EngineTarget, ...EngineTarget[]]
}

function checkEndpoint(endpoint: string): string {
  const url = endpoint.replaceAll('{host}', 'localhost').replace(/\/+$/, '')
  if (/^https?:\/\/[^\s/]+/.test(url) && URL.canParse(url)) return url
  throw usageError(`--endpoint '${endpoint}' is not a URL such as http://localhost:19730`)
}

function mismatch(rankCount: number, endpoints: number, parallelSize: number): string {
  const daemon = `the daemon has ${counted(rankCount, 'rank')}`
  const asked = `${endpoints} --endpoint with --inference-parallel-size ${parallelSize}`
  if (rankCount % parallelSize === 0) {
    return `${daemon}, ${counted(rankCount / parallelSize, 'group')} of ${parallelSize}, not ${asked}: give an endpoint for each group`
  }
  const wanted = endpoints * parallelSize
  return `${daemon}, which does not fit ${asked}: start it with \`ckpt serve --ranks ${wanted}\``
}
