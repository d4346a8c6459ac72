import { hostname } from 'node:os'
import {
  CkptError,
  type PullRequest as HttpPullRequest,
  type RegisterAnswer,
  UPDATE_TIMEOUT_SECONDS,
} from '@ckpt/core'
import { version as ckptVersion } from '../../../package.json'
import { abortOf, signalWithin } from '../../engines/client.ts'
import { withNetworkDevices } from '../network-devices.ts'
import type { Registry } from '../registry/registry.ts'
import { readColumns } from '../remote/layouts.ts'
import { type PullAnswer, type PullRequest, UPDATE_LIMIT_MS } from '../remote/messages.ts'
import { pack, unpack } from '../remote/pack.ts'
import type { DaemonOptions, NetworkDeviceInfo } from '../types.ts'
import { type Cluster, type ClusterOptions, openCluster } from './cluster.ts'
import { clusterOptions } from './options.ts'
import type { ClusterMessage, ClusterNode } from './types.ts'

const JOIN_TIMEOUT_SECONDS = 30
/** Between questions to a leader that misses a daemon. */
const ASK_MS = 200

type Parts = Pick<DaemonOptions, 'library' | 'ranks'> & {
  readonly registry: Pick<Registry, 'pull'>
}

/** Copies what the daemons of a cluster hold, which this one does not belong to: for each it is the cluster's guest. */
export class GuestPulls {
  readonly #parts: Parts
  readonly #closing = new AbortController()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /**
   * @param asked whoever asks for it is gone: nobody waits for the copy
   * @throws CkptError `leader_lost`, `node_lost`, `update_timeout`, `aborted`, `checkpoint_not_found`, `bad_request` of an address or a token file,
   *   and as `Registry.pull`
   */
  async pull(name: string, request: HttpPullRequest, asked: AbortSignal): Promise<RegisterAnswer> {
    const { library, registry } = this.#parts
    const { leader, cluster_token_file: clusterTokenFile, replace = false } = request
    const told = { leader, clusterTokenFile, guest: true, nodeRank: null, nodes: null }
    const session = new GuestSession(this.#closing.signal, asked, request)
    try {
      await session.open(clusterOptions(told) as ClusterOptions, library)
      const { version, columns, remotes } = await session.ask(name, request.version ?? null)
      const { table, sources } = readColumns(columns)
      const confirm = () => session.confirm()
      const source = { version, table, sources, remotes, devices: this.#devices, confirm }
      return await registry.pull(name, { ...source, gone: session.gone }, replace)
    } catch (error) {
      throw explained(session.gone.aborted ? session.gone.reason : error, name, leader)
    } finally {
      await session.close()
    }
  }

  /** Of ranks that have the same, once. */
  get #devices(): readonly (readonly NetworkDeviceInfo[])[] {
    const all = withNetworkDevices(this.#parts.ranks).map(
      ({ networkDevices = [] }) => networkDevices,
    )
    const key = (devices: readonly NetworkDeviceInfo[]) => devices.map(({ name }) => name).join()
    return [...new Map(all.map((devices) => [key(devices), devices])).values()]
  }

  /** Ends those that go on. */
  close(): void {
    this.#closing.abort(new CkptError('shutting_down', 'the daemon is ending'))
  }
}

/** One membership, for as long as something is copied. */
class GuestSession {
  /** What was asked for is not held for this daemon any more, or there is no time left. Its reason is a CkptError. */
  readonly gone: AbortSignal
  readonly #lost = new AbortController()
  readonly #joined = Promise.withResolvers<ClusterNode>()
  readonly #joinUntilMs: number
  readonly #joinSeconds: number
  #cluster: Cluster | null = null

  constructor(
    closing: AbortSignal,
    asked: AbortSignal,
    { join_timeout, timeout = UPDATE_TIMEOUT_SECONDS }: HttpPullRequest,
  ) {
    this.#joinSeconds = join_timeout ?? JOIN_TIMEOUT_SECONDS
    this.#joinUntilMs = performance.now() + this.#joinSeconds * 1000
    const message = `it took longer than its timeout of ${timeout} s`
    const ending = AbortSignal.any([closing, isLeft(asked), this.#lost.signal])
    this.gone = signalWithin(ending, timeout * 1000, { code: 'update_timeout', message })
    this.#joined.promise.catch(() => {}) // thrown to whoever waits for it
  }

  async open(options: ClusterOptions, library: DaemonOptions['library']): Promise<void> {
    // without ranks nobody asks it anything
    const info = { host: hostname(), version: ckptVersion, ranks: [] }
    this.#cluster = await openCluster(options, info, library, {
      joined: (node) => this.#joined.resolve(node),
      lost: (_node, failure) => this.#lost.abort(CkptError.from(failure)),
      post: () => {},
      request: async () => {
        throw new CkptError('not_supported', 'this guest takes part in no update')
      },
    })
  }

  /** Waits for the leader, and for daemons that have not come yet. */
  async ask(name: string, version: string | null): Promise<PullAnswer> {
    const late = () => this.#joined.reject(this.#notJoined())
    const timer = setTimeout(late, Math.max(0, this.#joinUntilMs - performance.now()))
    await this.#orGone(this.#joined.promise).finally(() => clearTimeout(timer))
    for (;;) {
      try {
        return (await this.#request({ op: 'pull', name, version })) as PullAnswer
      } catch (error) {
        const { code } = CkptError.wrap(error)
        if (code !== 'node_lost' || performance.now() >= this.#joinUntilMs) throw error
      }
      await this.#orGone(Bun.sleep(ASK_MS))
    }
  }

  async confirm(): Promise<void> {
    await this.#request({ op: 'end_pull' })
  }

  async #request(request: PullRequest): Promise<unknown> {
    const leader = await this.#joined.promise
    const message = pack(request) as ClusterMessage
    // the session has a deadline of its own
    const asked = this.#opened.request(leader, message, UPDATE_LIMIT_MS)
    return unpack(await this.#orGone(asked))
  }

  get #opened(): Cluster {
    if (this.#cluster === null) throw new Error('the session is not open')
    return this.#cluster
  }

  #notJoined(): CkptError {
    const why = this.#opened.alone ?? 'nothing was heard of it'
    return new CkptError('leader_lost', `it did not answer within ${this.#joinSeconds} s: ${why}`)
  }

  #orGone<T>(work: Promise<T>): Promise<T> {
    return Promise.race([abortOf(this.gone), work])
  }

  async close(): Promise<void> {
    await this.#cluster?.close()
  }
}

/** Ends when `asked` does, with a CkptError. */
function isLeft(asked: AbortSignal): AbortSignal {
  const left = new AbortController()
  const end = () => left.abort(new CkptError('aborted', 'whoever asked for it is gone'))
  if (asked.aborted) end()
  else asked.addEventListener('abort', end, { once: true })
  return left.signal
}

/** What is about this daemon's own memory and names speaks for itself. */
const OWN = new Set(['checkpoint_exists', 'host_memory_exhausted', 'bad_request', 'shutting_down'])

function explained(error: unknown, name: string, leader: string): CkptError {
  const known = CkptError.wrap(error)
  const { failure, code } = known
  if (OWN.has(code)) return known
  const message = `'${name}' could not be copied from the daemons whose leader is at ${leader}: ${failure.message}`
  return CkptError.from({ ...failure, message })
}
