import { isIP } from 'node:net'
import { CkptError } from '@ckpt/core'

const UPDATE_PATHS = ['/collective_rpc', '/update_weights_from_ipc']

export interface EngineAddress {
  readonly url: string
  /** Unix socket that the engine listens at. */
  readonly uds: string | null
}

/** An engine's URL, taken apart. */
export interface EngineUrl {
  /** Scheme, host, port and prefix of the server: the same for every route of it. */
  readonly base: string
  /** Path of the update as the URL gives it; null when the URL ends at the server. */
  readonly updatePath: string | null
  readonly origin: string
}

/** @throws CkptError `bad_request` */
export function parseEngineUrl(text: string): URL {
  const url = URL.parse(text)
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:')) {
    throw new CkptError('bad_request', `engine URL '${text}' is not an http URL`)
  }
  return url
}

/** @throws CkptError `bad_request` */
export function splitEngineUrl(text: string): EngineUrl {
  const url = parseEngineUrl(text)
  const path = url.pathname.replace(/\/+$/, '')
  const known = UPDATE_PATHS.find((one) => path.endsWith(one))
  const prefix = known === undefined ? '' : path.slice(0, -known.length)
  return {
    base: `${url.protocol}//${url.host}${prefix}`,
    updatePath: path === '' ? null : `${path}${url.search}`,
    origin: url.origin,
  }
}

/** `localhost`, 127.0.0.0/8 and ::1. */
export function isLoopback(url: URL): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (host === 'localhost' || host === '::1') return true
  return isIP(host) === 4 && host.startsWith('127.')
}
