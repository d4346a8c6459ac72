import { isAbsolute, resolve } from 'node:path'
import { CkptError } from '@ckpt/core'
import { SPIN_CHOICES, type SpinChoice } from './rank/spin.ts'
import type { DaemonOptions } from './types.ts'

export const BROADCAST_CHOICES = ['copies', 'nccl'] as const
export type BroadcastChoice = (typeof BROADCAST_CHOICES)[number]

/** What `ckpt serve` is told. Every field has a default, see {@link SERVE_DEFAULTS}. */
export interface ServeOptions {
  /** `auto`, `host`, `host:D` (D virtual devices), `cuda`, `cuda:0,2`. */
  readonly devices: string
  /** Ranks of this daemon; null: one per device. */
  readonly ranks: number | null
  /** Unix socket to listen at; null: {@link defaultSocketPath} when nothing else is listened at. */
  readonly uds: string | null
  /** `HOST:PORT` to listen at as well; needs `tokenFile`. */
  readonly listen: string | null
  /** File whose only line is the token that TCP clients send as `Authorization: Bearer TOKEN`. */
  readonly tokenFile: string | null
  /** Path with one `%d`: each rank has a Unix socket of its own, as checkpoint-engine's servers have. */
  readonly rankSockets: string | null
  /** Seconds that calls of several ranks wait for each other; see `rank-sockets.ts`. */
  readonly joinWindow: number
  /** Directories that files may be registered from; null: any over Unix sockets, none over TCP. */
  readonly allowDirs: readonly string[] | null
  /** URL prefixes of engines that may be contacted; null: loopback and Unix sockets. */
  readonly allowEngines: readonly string[] | null
  /** Most GiB of pinned host memory; null: 80 % of the machine's. */
  readonly hostMemoryGib: number | null
  /** Other checkpoints go when a new one does not fit. */
  readonly evict: boolean
  readonly inPlace: 'never' | 'always' | 'consume'
  /** Private directory for journal and engine sockets; null: one per listen address below {@link stateRoot}. */
  readonly stateDir: string | null
  readonly ringGib: number | null
  readonly bucketMib: number | null
  /** Part of the least free device memory that a ring may take; null: `PS_MEM_FRACTION`, else 0.9. */
  readonly memoryFraction: number | null
  /** Whether ranks keep a processor while an update moves; `auto`: where there are enough. */
  readonly spin: SpinChoice
  /** How ranks bring each other their buckets. */
  readonly broadcast: BroadcastChoice
  /** Seconds that a communicator, which holds device memory, is kept without an update. */
  readonly idleCommunicatorSeconds: number
  /** `HOST:PORT` of the daemon of node rank 0, or `env`; see `cluster/options.ts`. */
  readonly leader: string | null
  readonly nodeRank: number | null
  readonly nodes: number | null
  /** File whose only line is the token that all daemons of the cluster have. */
  readonly clusterTokenFile: string | null
  /** Comes to the cluster of `leader` for a while, beside its `nodes`: nobody counts with its ranks. */
  readonly guest: boolean
}

export const SERVE_DEFAULTS: ServeOptions = {
  devices: 'auto',
  ranks: null,
  uds: null,
  listen: null,
  tokenFile: null,
  rankSockets: null,
  joinWindow: 5,
  allowDirs: null,
  allowEngines: null,
  hostMemoryGib: null,
  evict: false,
  inPlace: 'never',
  stateDir: null,
  ringGib: null,
  bucketMib: null,
  memoryFraction: null,
  spin: 'auto',
  broadcast: 'copies',
  idleCommunicatorSeconds: 600,
  leader: null,
  nodeRank: null,
  nodes: null,
  clusterTokenFile: null,
  guest: false,
}

export type Environment = Readonly<Record<string, string | undefined>>

export interface TcpAddress {
  readonly host: string
  readonly port: number
}

/** Where the daemon listens. */
export interface ListenOptions {
  readonly uds: string | null
  readonly tcp: TcpAddress | null
  readonly tokenFile: string | null
  readonly rankSockets: string | null
  readonly joinWindowMs: number
}

/** The part of {@link DaemonOptions} that does not depend on the machine's devices. */
export type LimitOptions = Omit<DaemonOptions, 'library' | 'ranks' | 'stateDir'>

const GIB = 1024 ** 3
const MIB = 1024 ** 2
/** sun_path of Linux holds 108 bytes with the terminating zero. */
const SOCKET_PATH_BYTES_MAX = 107
const MEMORY_FRACTION = 0.9
/** A timer's. */
const IDLE_SECONDS_MAX = 2 ** 31 / 1000 - 1

/** `$XDG_RUNTIME_DIR/ckpt/ckpt.sock`, else `/tmp/ckpt-<uid>/ckpt.sock`. */
export function defaultSocketPath(env: Environment = process.env): string {
  const runtime = env.XDG_RUNTIME_DIR
  if (runtime !== undefined && isAbsolute(runtime)) return resolve(runtime, 'ckpt/ckpt.sock')
  return `/tmp/ckpt-${process.getuid?.() ?? 0}/ckpt.sock`
}

/** `$XDG_STATE_HOME/ckpt`, else `~/.local/state/ckpt`. */
export function stateRoot(env: Environment = process.env): string {
  const state = env.XDG_STATE_HOME
  if (state !== undefined && isAbsolute(state)) return resolve(state, 'ckpt')
  const home = env.HOME
  if (home === undefined || !isAbsolute(home)) {
    throw refuse('--state-dir is needed: neither XDG_STATE_HOME nor HOME is an absolute path')
  }
  return resolve(home, '.local/state/ckpt')
}

/**
 * `HOST:PORT` or `[V6]:PORT`; port 0 takes a free one.
 *
 * @param option for the message
 * @throws CkptError `bad_request`
 */
export function parseTcpAddress(text: string, option = '--listen'): TcpAddress {
  const match = /^(?:\[([0-9a-fA-F:.%a-z]+)\]|([^:/\s[\]]+)):(\d{1,5})$/.exec(text)
  const port = Number(match?.[3])
  if (match === null || port > 65_535) {
    throw refuse(`${option} wants HOST:PORT, such as 127.0.0.1:8800, not '${text}'`)
  }
  return { host: (match[1] ?? match[2])!, port }
}

/** @throws CkptError `bad_request` when Linux cannot bind a socket there */
export function checkSocketPath(path: string, option: string): string {
  const absolute = resolve(path)
  const bytes = Buffer.byteLength(absolute)
  if (path === '' || path.includes('\0')) throw refuse(`${option} wants a path`)
  if (bytes > SOCKET_PATH_BYTES_MAX) {
    throw refuse(
      `${option} ${absolute} has ${bytes} bytes, a Unix socket's path has at most ${SOCKET_PATH_BYTES_MAX}`,
    )
  }
  return absolute
}

/**
 * Where to listen, checked. Without any address it is the private default socket.
 *
 * @throws CkptError `bad_request`, also for TCP without a token
 */
export function listenOptions(
  options: ServeOptions,
  env: Environment = process.env,
): ListenOptions {
  const tcp = options.listen === null ? null : parseTcpAddress(options.listen)
  if (tcp !== null && options.tokenFile === null) {
    throw new CkptError(
      'bad_request',
      '--listen needs --token-file: without a token anyone who reaches the port could load weights',
    )
  }
  const rankSockets = options.rankSockets === null ? null : checkPattern(options.rankSockets)
  const only = tcp !== null || rankSockets !== null
  const uds = options.uds ?? (only ? null : defaultSocketPath(env))
  if (!(options.joinWindow > 0 && options.joinWindow <= 3600)) {
    throw refuse(`the join window is ${options.joinWindow} s, it must lie in (0, 3600]`)
  }
  return {
    uds: uds === null ? null : checkSocketPath(uds, '--uds'),
    tcp,
    tokenFile: options.tokenFile,
    rankSockets,
    joinWindowMs: options.joinWindow * 1000,
  }
}

/**
 * Memory and permissions, from the flags and checkpoint-engine's environment variables: `PS_MAX_BUCKET_SIZE_GB` is the most
 * GiB (a float) that one bucket may have, the ring has two of them; `PS_MEM_FRACTION` the part of the free device memory.
 *
 * @throws CkptError `bad_request`
 */
export function limitOptions(options: ServeOptions, env: Environment = process.env): LimitOptions {
  const bucketGib = fromEnv(env, 'PS_MAX_BUCKET_SIZE_GB')
  if (bucketGib !== null) checkSize('PS_MAX_BUCKET_SIZE_GB', bucketGib, 4096)
  const fraction = options.memoryFraction ?? fromEnv(env, 'PS_MEM_FRACTION') ?? MEMORY_FRACTION
  if (!(fraction > 0 && fraction <= 1)) {
    throw refuse(`PS_MEM_FRACTION is ${fraction}, it must lie in (0, 1]`)
  }
  if (options.hostMemoryGib !== null) checkSize('--host-memory-gib', options.hostMemoryGib, 65_536)
  if (options.ringGib !== null) checkSize('--ring-gib', options.ringGib, 4096)
  if (options.bucketMib !== null) checkSize('--bucket-mib', options.bucketMib, 4096 * 1024)
  if (!['never', 'always', 'consume'].includes(options.inPlace)) {
    throw refuse(`--in-place is never, always or consume, not '${options.inPlace}'`)
  }
  if (!SPIN_CHOICES.includes(options.spin)) {
    throw refuse(`--spin is auto, on or off, not '${options.spin}'`)
  }
  if (!BROADCAST_CHOICES.includes(options.broadcast)) {
    throw refuse(`--broadcast is copies or nccl, not '${options.broadcast}'`)
  }
  checkSize('--idle-communicator-seconds', options.idleCommunicatorSeconds, IDLE_SECONDS_MAX)
  const bucketBytes = bytes(options.bucketMib, MIB) ?? bytes(bucketGib, GIB)
  return {
    allowedDirs: options.allowDirs?.map((dir) => resolve(dir)) ?? null,
    allowedEngines: options.allowEngines,
    hostMemoryBytes: bytes(options.hostMemoryGib, GIB),
    evict: options.evict,
    inPlace: options.inPlace,
    ringBytes:
      bytes(options.ringGib, GIB) ?? (bucketGib === null ? null : 2 * bytes(bucketGib, GIB)!),
    bucketBytes,
    memoryFraction: fraction,
    spin: options.spin,
    broadcast: options.broadcast,
    idleCommunicatorMs: options.idleCommunicatorSeconds * 1000,
  }
}

function checkPattern(pattern: string): string {
  if (pattern.split('%d').length !== 2) {
    throw refuse(
      `--rank-sockets wants a path with one %d, such as /run/rank-%d.sock, not '${pattern}'`,
    )
  }
  return checkSocketPath(pattern, '--rank-sockets')
}

function fromEnv(env: Environment, name: string): number | null {
  const text = env[name]?.trim()
  if (text === undefined || text === '') return null
  const value = Number(text)
  if (!Number.isFinite(value)) throw refuse(`${name} is '${text}', it must be a number`)
  return value
}

function checkSize(name: string, value: number, most: number): void {
  if (value > 0 && value <= most) return
  throw refuse(`${name} is ${value}, it must lie in (0, ${most}]`)
}

function bytes(value: number | null, unitBytes: number): number | null {
  return value === null ? null : Math.max(1, Math.floor(value * unitBytes))
}

function refuse(message: string): CkptError {
  return new CkptError('bad_request', message)
}
