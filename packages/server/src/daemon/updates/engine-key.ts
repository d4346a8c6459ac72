import { splitEngineUrl } from '../../engines/url.ts'

export interface EnginePlace {
  readonly url: string
  readonly uds: string | null
  /** The daemon that contacts it, of several: on another host the same URL may be another engine. */
  readonly node?: number | undefined
}

/**
 * What the daemon and its rank Workers know an engine by: the same for every URL of one server.
 *
 * @throws CkptError `bad_request`: the URL is none
 */
export function engineKey({ url, uds, node = 0 }: EnginePlace): string {
  const { base } = splitEngineUrl(url)
  const at = uds === null ? base : `${base} unix:${uds}`
  return node === 0 ? at : `${at} at node ${node}`
}
