import { CkptError } from '@ckpt/core'
import { type EngineAddress, isLoopback, parseEngineUrl } from '../../engines/url.ts'

/**
 * An entry of the list is a URL prefix, or the path of a Unix socket with or without `unix:`; null: loopback and Unix sockets.
 *
 * @throws CkptError `engine_not_allowed`, `bad_request`
 */
export function checkAllowed({ url, uds }: EngineAddress, allowed: readonly string[] | null): void {
  const parsed = parseEngineUrl(url)
  const where = uds === null ? url : `unix:${uds}`
  const accepted =
    allowed === null
      ? uds !== null || isLoopback(parsed)
      : allowed.some((entry) => (uds === null ? isUnder(parsed, entry) : isSocket(uds, entry)))
  if (accepted) return
  const list = allowed === null ? 'loopback and Unix sockets' : allowed.join(', ')
  throw new CkptError('engine_not_allowed', `engine ${where} is not allowed; allowed: ${list}`)
}

function isSocket(uds: string, entry: string): boolean {
  return entry === uds || entry === `unix:${uds}`
}

/** Compared as URLs: `http://host:1` must not allow `http://host:19730`, nor `http://host:1@elsewhere`. */
function isUnder(url: URL, entry: string): boolean {
  const allowed = URL.parse(entry)
  if (allowed === null || allowed.origin !== url.origin) return false
  if (url.username !== '' || url.password !== '') return false
  const prefix = allowed.pathname.replace(/\/+$/, '')
  return url.pathname === prefix || url.pathname.startsWith(`${prefix}/`)
}
