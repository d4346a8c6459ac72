import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { CkptError, type Failure, type UpdateRequest } from '@ckpt/core'
import { selectDevices } from '@ckpt/cuda'
import { version } from '../../package.json'
import { GuestPulls } from './cluster/guest-pulls.ts'
import { clusterOptions } from './cluster/options.ts'
import { DaemonCluster } from './cluster/serving.ts'
import { createApp, type DaemonApp } from './http/app.ts'
import { readToken } from './http/auth.ts'
import type { Daemon } from './context.ts'
import { BufferHolds } from './http/buffer-holds.ts'
import { listenTcp, listenUnix, type OpenListener } from './http/listeners.ts'
import { lockStateDir } from './lock.ts'
import { log } from './log.ts'
import {
  checkSocketPath,
  defaultSocketPath,
  type ListenOptions,
  limitOptions,
  listenOptions,
  SERVE_DEFAULTS,
  type ServeOptions,
  stateRoot,
} from './options.ts'
import { RankCalls, rankSocketPath } from './http/rank-sockets.ts'
import { createRegistry } from './registry/held.ts'
import { withNetworkDevices } from './network-devices.ts'
import type { Registry } from './registry/registry.ts'
import { makePrivateDir } from './http/sockets.ts'
import type { DaemonOptions } from './types.ts'
import { createUpdates, type UpdateHandle, type Updates } from './updates/updates.ts'

export { defaultSocketPath, SERVE_DEFAULTS, type ServeOptions } from './options.ts'

const HEARTBEAT_MS = 10_000

export interface RunningDaemon {
  /** The first of {@link RunningDaemon.addresses}. */
  readonly address: string
  /** `unix:/path` or `http://host:port`, every address that is listened at. */
  readonly addresses: readonly string[]
  readonly app: DaemonApp
  readonly options: DaemonOptions
  /** Settles when a device is lost: close the daemon and exit with status 4. */
  readonly deviceLost: Promise<Failure>
  /** Aborts what runs, releases the engines, removes sockets and shared memory. A second call waits for the first. */
  close(reason: string): Promise<void>
}

/**
 * Runs a daemon in this process until `close`. Signals are the caller's business.
 *
 * ```ts
 * const daemon = await serve({ devices: 'host', ranks: 2, uds: '/tmp/ckpt.sock' })
 * process.once('SIGTERM', () => daemon.close('SIGTERM'))
 * ```
 *
 * @throws CkptError with one line that says which option is wrong, or what is missing on this machine
 */
export async function serve(options: Partial<ServeOptions>): Promise<RunningDaemon> {
  const told: ServeOptions = { ...SERVE_DEFAULTS, ...options }
  const listen = listenOptions(told)
  const limits = limitOptions(told)
  const clustered = clusterOptions(told)
  const token = listen.tokenFile === null ? null : readToken(listen.tokenFile)
  // opening the native library removes the shared memory of daemons that were killed
  const { library, ranks: selected } = selectDevices(told.devices, told.ranks)
  const ranks = clustered === null ? selected : withNetworkDevices(selected)
  const stateDir = openStateDir(told.stateDir, listen)
  const daemonOptions: DaemonOptions = { ...limits, library, ranks, stateDir }
  const closing: Closing = { reason: null }
  const listeners: OpenListener[] = []
  // undone in reverse order: answers leave last, after everything that they may wait for has ended
  await using undo = new AsyncDisposableStack()
  const lock = lockStateDir(stateDir)
  undo.defer(() => lock.release())
  undo.defer(() => closeListeners(listeners))
  const registry = await createRegistry(daemonOptions)
  undo.defer(() => registry.close())
  const cluster = clustered === null ? null : new DaemonCluster(clustered)
  undo.defer(() => cluster?.close())
  const updates = await createUpdates(daemonOptions, registry, cluster?.place)
  undo.defer(() => updates.close(closing.reason ?? 'the daemon could not start'))
  await updates.recover()
  const daemon = wire(registry, updates, cluster, daemonOptions, listen, closing)
  const app = createApp(daemon)
  await cluster?.open(library, ranks, { updates, app: () => app })
  await openListeners(listeners, app, daemonOptions, listen, token)
  undo.defer(() => {
    daemon.bufferHolds.close()
    daemon.pulls.close()
    daemon.rankCalls.close(new CkptError('shutting_down', 'the daemon is shutting down'))
    for (const listener of listeners) listener.refuse()
  })
  updates.begin()
  const addresses = listeners.map(({ address }) => address)
  log.info('ready at {addresses}', { addresses: addresses.join(' '), ranks: ranks.length })
  return running(app, daemonOptions, addresses, updates.deviceLost, closing, undo.move())
}

interface Closing {
  /** null until the daemon closes. */
  reason: string | null
}

function running(
  app: DaemonApp,
  options: DaemonOptions,
  addresses: readonly string[],
  deviceLost: Promise<Failure>,
  closing: Closing,
  undo: AsyncDisposableStack,
): RunningDaemon {
  let closed: Promise<void> | null = null
  return {
    app,
    options,
    address: addresses[0]!,
    addresses,
    deviceLost,
    close(reason) {
      if (closed === null) {
        log.info('closing: {reason}', { reason })
        closing.reason = reason
        closed = undo.disposeAsync()
      }
      return closed
    },
  }
}

function wire(
  registry: Registry,
  updates: Updates,
  cluster: DaemonCluster | null,
  options: DaemonOptions,
  listen: ListenOptions,
  closing: Closing,
): Daemon {
  const start = (name: string, request: UpdateRequest) => logged(updates.start(name, request), name)
  const gather = async (name: string) =>
    updates.leader?.versions.gather(name) ?? registry.gather(name)
  const rankCalls = new RankCalls({
    ranks: options.ranks.map(({ rank }) => rank),
    windowMs: listen.joinWindowMs,
    gather,
    start,
  })
  return {
    version,
    registry,
    updates,
    start,
    rankCalls,
    gather,
    cluster,
    pulls: new GuestPulls({ library: options.library, ranks: options.ranks, registry }),
    bufferHolds: new BufferHolds((ids) => registry.abandon(ids)),
    allowedDirs: options.allowedDirs,
    heartbeatMs: HEARTBEAT_MS,
    get closing() {
      return closing.reason !== null
    },
  }
}

/** One line when an update starts and one when it ends; its failure is nobody's unhandled rejection. */
function logged(handle: UpdateHandle, name: string): UpdateHandle {
  const { id } = handle
  log.info('update {id} of {name} accepted', { id, name })
  handle.done.then(
    ({ bytes, mode, gb_per_s, seconds }) =>
      log.info('update {id} of {name} done: {bytes} bytes in {seconds} s, {gbPerS} GB/s, {mode}', {
        id,
        name,
        bytes,
        seconds: seconds.total,
        gbPerS: gb_per_s,
        mode,
      }),
    (error) => {
      const { failure } = CkptError.wrap(error)
      log.error('update {id} of {name} failed: {code}: {message}', { id, name, ...failure })
    },
  )
  return handle
}

async function openListeners(
  listeners: OpenListener[],
  app: DaemonApp,
  { ranks }: DaemonOptions,
  { uds, tcp, rankSockets }: ListenOptions,
  token: Buffer | null,
): Promise<void> {
  if (uds !== null) {
    const privateDir = dirname(uds) === dirname(defaultSocketPath())
    listeners.push(await listenUnix(app, uds, { rank: null, privateDir }))
  }
  if (tcp !== null && token !== null) listeners.push(listenTcp(app, tcp, token))
  if (rankSockets === null) return
  for (const { rank } of ranks) {
    const path = checkSocketPath(rankSocketPath(rankSockets, rank), '--rank-sockets')
    listeners.push(await listenUnix(app, path, { rank, privateDir: false }))
  }
}

async function closeListeners(listeners: readonly OpenListener[]): Promise<void> {
  await Promise.all(listeners.map((listener) => listener.close()))
}

/** Short names, because engine sockets lie below and their paths have a limit of 107 bytes. */
const STATE_NAME_DIGITS = 12

function openStateDir(told: string | null, listen: ListenOptions): string {
  if (told !== null) {
    const dir = resolve(told)
    makePrivateDir(dir)
    return dir
  }
  const { uds, tcp, rankSockets } = listen
  const address = [uds, tcp && `${tcp.host}:${tcp.port}`, rankSockets].filter(Boolean).join(' ')
  const digest = createHash('sha256').update(address).digest('hex')
  const dir = join(stateRoot(), digest.slice(0, STATE_NAME_DIGITS))
  makePrivateDir(dir)
  writeFileSync(join(dir, 'address'), `${address}\n`)
  return dir
}
