import { createHash, timingSafeEqual } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { CkptError } from '@ckpt/core'
import type { MiddlewareHandler } from 'hono'
import type { DaemonEnv, TokenDigest } from '../context.ts'
import { log } from '../log.ts'

const TOKEN_BYTES_MAX = 4096
/** Load balancers ask for it and it tells nothing but that the daemon runs. */
const OPEN_PATH = '/v1/healthz'

/**
 * Reads the token that TCP clients must send, without surrounding white space.
 *
 * @param option that names the file, for messages
 * @throws CkptError `bad_request` when the file cannot be read or holds no token
 */
export function readToken(path: string, option = '--token-file'): TokenDigest {
  let text: string
  let mode: number
  try {
    text = readFileSync(path, 'utf8').trim()
    mode = statSync(path).mode
  } catch (error) {
    throw new CkptError('bad_request', `${option} ${path}: ${(error as Error).message}`)
  }
  if (!/^[\x21-\x7e]+$/.test(text) || text.length > TOKEN_BYTES_MAX) {
    throw new CkptError(
      'bad_request',
      `${option} ${path} must hold one token of 1 to ${TOKEN_BYTES_MAX} printable characters without spaces`,
    )
  }
  if ((mode & 0o007) !== 0) log.warn('the token file {path} is readable by every user', { path })
  return digest(text)
}

/** Whether the value of an `Authorization` header carries the token; in constant time. */
export function tokenMatches(expected: TokenDigest, header: string | undefined): boolean {
  const token = /^Bearer +(\S+)$/i.exec(header ?? '')?.[1]
  return timingSafeEqual(expected, digest(token ?? '')) && token !== undefined
}

/** Refuses what comes over a listener with a token and does not carry it. */
export function authenticate(): MiddlewareHandler<DaemonEnv> {
  return async (context, next) => {
    const { token } = context.env.listener
    if (token !== null && context.req.path !== OPEN_PATH) {
      if (!tokenMatches(token, context.req.header('authorization'))) {
        context.header('www-authenticate', 'Bearer')
        throw new CkptError('unauthorized', 'send the token as "Authorization: Bearer TOKEN"')
      }
    }
    await next()
  }
}

function digest(token: string): TokenDigest {
  return createHash('sha256').update(token).digest()
}
