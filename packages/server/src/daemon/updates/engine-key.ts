import { EngineClient } from '../../engines/client.ts'

/**
 * What the daemon and its rank Workers know an engine by: the same for every URL of one server.
 *
 * @throws CkptError `bad_request`: the URL is none
 */
export function engineKey({ url, uds }: { url: string; uds: string | null }): string {
  const { base } = new EngineClient({ url, uds, token: null })
  return uds === null ? base : `${base} unix:${uds}`
}
