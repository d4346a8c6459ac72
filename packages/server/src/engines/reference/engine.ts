import { CkptError, type Dialect, type EngineWeights } from '@ckpt/core'
import { openLibrary, selectDevices } from '@ckpt/cuda'
import { type Fault, Faults, strikes } from './faults.ts'
import type { UpdateWay } from './way.ts'
import { type RankOutcome, RankThread } from './rank-thread.ts'
import type { ShardedBy } from './shard.ts'
import { Turn } from './turn.ts'

/** How long a daemon that has disconnected may take to come back, by default. */
const GRACE_MS = 10_000
const DIALECTS: readonly string[] = ['D1', 'D2', 'D3', 'D4']
const SIZE_MAX = 64
/** How long a question about the weights waits for a running update. */
const WEIGHTS_WAIT_MS = 600_000

export interface EngineOptions {
  readonly tensorParallelSize: number
  /** Default: rows. */
  readonly shardedBy?: ShardedBy
  /** As `--devices` of the daemon: auto, host, host:D, cuda or cuda:I,J. */
  readonly devices: string
  readonly dialect: Dialect
  /** Each as in `faults.ts`. */
  readonly faults: readonly string[]
  /** How long a rank waits for a daemon that has disconnected. */
  readonly disconnectGraceMs?: number
  /** Take direct updates, and answer, as an engine with the extension of `ckpt_worker`; D4 only. Default false. */
  readonly direct?: boolean
}

export interface UpdateRequest {
  readonly way: UpdateWay
  /** Of each key, where the daemon is. */
  readonly addresses: Readonly<Record<string, string>>
  readonly timeoutMs: number
  readonly version: string | null
}

export type UpdateOutcome =
  | { readonly result: 'ok'; readonly ranks: readonly RankOutcome[] }
  /** `reason` names every rank that failed. Null: the update did not come to the ranks. */
  | {
      readonly result: 'failed'
      readonly reason: string
      readonly ranks: readonly RankOutcome[] | null
    }
  /** The fault `http-500` or `http-404`: nothing was done. */
  | { readonly result: 'http'; readonly status: 404 | 500 }

/**
 * The reference engine without its HTTP server: one Worker per tensor-parallel rank holds a shard of each tensor and takes
 * updates as checkpoint-engine's worker does.
 */
export class ReferenceEngine {
  readonly dialect: Dialect
  readonly direct: boolean
  /** Key of each rank in a map. */
  readonly keys: readonly string[]
  readonly #ranks: readonly RankThread[]
  readonly #uuids: readonly string[]
  readonly #faults: Faults
  readonly #turn = new Turn()
  /** Settled when what the fault `hold@open` holds may go on. */
  #held = Promise.withResolvers<void>()
  #holding = false
  #version: string | null = null
  #updates = 0
  paused = false

  private constructor(
    options: EngineOptions,
    ranks: readonly RankThread[],
    keys: readonly string[],
    uuids: readonly string[],
  ) {
    this.dialect = options.dialect
    this.direct = options.direct ?? false
    this.keys = keys
    this.#ranks = ranks
    this.#uuids = uuids
    this.#faults = new Faults(options.faults, ranks.length)
  }

  /** Starts the Workers. Throws `bad_request`, `native_missing`, and what the device says. */
  static async start(options: EngineOptions, onExit: () => void): Promise<ReferenceEngine> {
    const size = options.tensorParallelSize
    if (!Number.isSafeInteger(size) || size < 1 || size > SIZE_MAX) {
      throw new CkptError('bad_request', `the tensor-parallel size must be 1 to ${SIZE_MAX}`)
    }
    if (!DIALECTS.includes(options.dialect)) {
      throw new CkptError('bad_request', `the dialect must be one of ${DIALECTS.join(', ')}`)
    }
    if (options.direct && options.dialect !== 'D4') {
      throw new CkptError('bad_request', 'direct updates are taken in dialect D4 only')
    }
    new Faults(options.faults, size)
    const selection = selectDevices(options.devices, size)
    const library = openLibrary(selection.library)
    const threads = selection.ranks.map(() => new RankThread(library, onExit))
    const started = threads.map((thread, rank) =>
      thread.start({
        library: selection.library,
        rank,
        size,
        shardedBy: options.shardedBy ?? 'rows',
        device: selection.ranks[rank]?.device ?? 0,
        dialect: options.dialect,
        direct: options.direct ?? false,
        graceMs: options.disconnectGraceMs ?? GRACE_MS,
      }),
    )
    const failed = (await Promise.allSettled(started)).find((one) => one.status === 'rejected')
    if (failed !== undefined) {
      await Promise.all(threads.map((thread) => thread.close()))
      throw failed.reason
    }
    const keys = selection.ranks.map((rank) => rank.key)
    const uuids = selection.ranks.map((rank) => rank.uuid)
    return new ReferenceEngine(options, threads, keys, uuids)
  }

  get torn(): boolean {
    return this.#ranks.some((rank) => rank.torn)
  }

  /** Whether a fault holds it. */
  get holding(): boolean {
    return this.#holding || this.#ranks.some((rank) => rank.holding)
  }

  /**
   * Takes one update: every rank connects to the address of its key; done when all ranks have left. The timeout counts from
   * now, also while an update before it runs.
   */
  update(request: UpdateRequest): Promise<UpdateOutcome> {
    const endMs = performance.now() + request.timeoutMs
    return this.#turn.take(request.timeoutMs, async () => {
      const timeoutMs = Math.max(1, Math.ceil(endMs - performance.now()))
      const outcome = await this.#updateNow({ ...request, timeoutMs })
      if (outcome.result !== 'ok') return outcome
      // a daemon may look and leave
      if (request.way === 'direct' && !outcome.ranks.every((rank) => rank.placed)) return outcome
      this.#updates++
      this.#version = request.version
      return outcome
    })
  }

  async #updateNow(request: UpdateRequest): Promise<UpdateOutcome> {
    const faults = this.#faults.take(request.way)
    if (strikes(faults, 'http-500', 'open')) return { result: 'http', status: 500 }
    if (strikes(faults, 'http-404', 'open')) return { result: 'http', status: 404 }
    if (strikes(faults, 'hold', 'open')) await this.#hold()
    if (strikes(faults, 'hang', 'open')) {
      await Bun.sleep(request.timeoutMs)
      const method = request.way === 'ring' ? 'update_weights_from_ipc' : 'ckpt_direct'
      return { result: 'failed', reason: `RPC call to ${method} timed out`, ranks: null }
    }
    const ranks = await Promise.all(
      this.#ranks.map((thread, rank) => this.#updateRank(thread, rank, request, faults)),
    )
    const reasons = ranks.flatMap(({ error }, rank) =>
      error === null ? [] : `rank ${rank}: ${error}`,
    )
    return reasons.length === 0
      ? { result: 'ok', ranks }
      : { result: 'failed', reason: reasons.join('\n'), ranks }
  }

  #updateRank(
    thread: RankThread,
    rank: number,
    { way, addresses, timeoutMs }: UpdateRequest,
    faults: readonly Fault[],
  ): Promise<RankOutcome> {
    const mine = this.#faults.ofRank(faults, rank)
    const address = strikes(mine, 'missing-device', 'open')
      ? null
      : addressOf(addresses, this.#uuids[rank] ?? '', this.keys[rank] ?? '')
    return thread.update(way, address, timeoutMs, mine)
  }

  /** Hashes everything that is held; waits for a running update. */
  weights(): Promise<EngineWeights> {
    return this.#turn.take(WEIGHTS_WAIT_MS, async () => {
      const tensors = await Promise.all(this.#ranks.map((rank) => rank.hash()))
      return {
        version: this.#version,
        updates: this.#updates,
        torn: this.torn,
        ranks: tensors.map((held, rank) => ({ uuid: this.keys[rank] ?? '', tensors: held })),
      }
    }) as Promise<EngineWeights>
  }

  /** Other faults in place of those that it has; what one of those holds goes on. @throws CkptError `bad_request` */
  arm(faults: readonly string[]): void {
    this.#faults.arm(faults)
    this.#holding = false
    this.#held.resolve()
    this.#held = Promise.withResolvers()
    for (const rank of this.#ranks) rank.release()
  }

  /** Whether the fault `hang@pause` strikes a pause that waits for requests. */
  pauseHangs(): boolean {
    return this.#faults.takeOf('pause')
  }

  /** Resolves when no fault holds a flush of the caches. */
  async mayFlush(): Promise<void> {
    if (this.#faults.takeOf('flush')) await this.#hold()
  }

  async #hold(): Promise<void> {
    this.#holding = true
    await this.#held.promise
  }

  async close(): Promise<void> {
    await Promise.all(this.#ranks.map((rank) => rank.close()))
  }
}

/**
 * A rank looks its own key up, then, when that is its bare uuid, the one key of its device: an engine of its own does not know which global
 * ranks it is, where ranks of several engines share a device.
 */
export function addressOf(
  addresses: Readonly<Record<string, string>>,
  uuid: string,
  key: string,
): string | null {
  const own = Object.hasOwn(addresses, key) ? addresses[key] : undefined
  if (own !== undefined) return own
  if (key !== uuid) return null
  const shared = Object.keys(addresses).filter((one) => one.startsWith(`${uuid}#`))
  return shared.length === 1 ? (addresses[shared[0] ?? ''] ?? null) : null
}
