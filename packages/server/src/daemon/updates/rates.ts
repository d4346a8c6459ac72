import {
  CkptError,
  type CostRates,
  DEFAULT_RATES,
  type EnginePlanRates,
  type EngineRates,
  engineRates,
  medianOf,
  type PlanRate,
  planRates,
  rateOf,
  type TakenBuckets,
  type TimedBytes,
} from '@ckpt/core'
import { log } from '../log.ts'
import type { DaemonOptions, LibraryOptions, RankInfo } from '../types.ts'
import {
  ENTRIES_MAX,
  LEARNT_MAX,
  type LearntEngine,
  NO_RATES,
  type RatesDocument,
  RatesFile,
} from './rates-file.ts'

/** Of less a broadcast is over before its clock has ticked often enough. */
const BROADCAST_BYTES_MIN = 64 * 2 ** 20

/** The answer of an update goes out before its rates are worked out, which takes a millisecond or more. */
const LEARN_AFTER_MS = 20

/** What an update that succeeded tells. */
export interface UpdateTold {
  readonly ranks: readonly RankInfo[]
  readonly broadcast: TimedBytes
  readonly engines: readonly { readonly key: string; readonly buckets: TakenBuckets }[]
}

/** What this daemon and those before it have found out about devices and engines: new plans are made with it. */
export class RateBook {
  readonly #library: LibraryOptions['kind']
  readonly #broadcast: DaemonOptions['broadcast']
  readonly #file: RatesFile
  #document: RatesDocument = NO_RATES
  #learning: Promise<void> = Promise.resolve()

  private constructor(
    library: LibraryOptions['kind'],
    broadcast: DaemonOptions['broadcast'],
    file: RatesFile,
  ) {
    this.#library = library
    this.#broadcast = broadcast
    this.#file = file
  }

  static async open(
    stateDir: string,
    library: LibraryOptions['kind'],
    broadcast: DaemonOptions['broadcast'] = 'copies',
  ): Promise<RateBook> {
    const book = new RateBook(library, broadcast, await RatesFile.open(stateDir))
    book.#document = await book.#file.read()
    return book
  }

  /**
   * What an update of these ranks is planned with.
   *
   * @param engines keys; null: nobody knows yet, it will be the one that was updated last
   */
  ratesOf(ranks: readonly RankInfo[], engines: readonly string[] | null): CostRates {
    const last = this.#document.engines.at(-1)
    const keys = engines ?? (last === undefined ? [] : [last.key])
    return planRates({
      h2dBytesPerSecond: ranks.map(({ uuid }) => this.h2dBytesPerSecond(uuid)),
      broadcastBytesPerSecond: this.#broadcastBytesPerSecond(ranks),
      engines: keys.map((key) => this.#engineRates(key)),
    })
  }

  /** null: the device was not measured yet. */
  h2dBytesPerSecond(uuid: string): number | null {
    const known = this.#document.devices.find((one) => this.#isDevice(one, uuid))
    return known?.h2d_bytes_per_second ?? null
  }

  #broadcastBytesPerSecond(ranks: readonly RankInfo[]): number | null {
    const known = this.#document.broadcasts.find((one) => this.#isGroup(one, ranks))
    return known === undefined ? null : medianOf(known.bytes_per_second)
  }

  #engineRates(key: string): EngineRates | null {
    const learnt = this.#document.engines.find((one) => one.key === key)?.learnt ?? []
    const bucketSeconds = medianOf(learnt.map((one) => one.bucket_s))
    const tensorSeconds = medianOf(learnt.map((one) => one.tensor_s))
    const reloadBytesPerSecond = medianOf(learnt.map((one) => one.reload_bytes_per_second))
    if (bucketSeconds === null || tensorSeconds === null) return null
    if (reloadBytesPerSecond === null) return null
    return { bucketSeconds, tensorSeconds, reloadBytesPerSecond }
  }

  /** For the status. */
  h2d(uuid: string): PlanRate {
    const rate = this.h2dBytesPerSecond(uuid)
    const from = rate === null ? 'default' : 'measured'
    return { bytes_per_second: rate ?? DEFAULT_RATES.h2dBytesPerSecond, from }
  }

  broadcast(ranks: readonly RankInfo[]): PlanRate {
    const rate = this.#broadcastBytesPerSecond(ranks)
    const from = rate === null ? 'default' : 'learnt'
    return { bytes_per_second: rate ?? DEFAULT_RATES.broadcastBytesPerSecond, from }
  }

  engine(key: string): EnginePlanRates {
    const known = this.#engineRates(key)
    const { bucketSeconds, tensorSeconds, reloadBytesPerSecond } = known ?? DEFAULT_RATES
    return {
      bucket_s: bucketSeconds,
      tensor_s: tensorSeconds,
      bytes_per_second: reloadBytesPerSecond,
      from: known === null ? 'default' : 'learnt',
    }
  }

  /** Kept from now on, also by later daemons of this state directory. */
  async measured(uuid: string, bytesPerSecond: number): Promise<void> {
    const device = { uuid, library: this.#library, h2d_bytes_per_second: bytesPerSecond }
    const devices = put(this.#document.devices, device, (one) => this.#isDevice(one, uuid))
    this.#document = { ...this.#document, devices }
    await this.#file.write(this.#document)
  }

  /** Soon, and kept as what was measured is, where the update tells something. Throws nothing. */
  learn(told: UpdateTold): Promise<void> {
    const learnt = this.#learning.then(async () => {
      await Bun.sleep(LEARN_AFTER_MS)
      await this.#learnNow(told)
    })
    this.#learning = learnt.catch((error: unknown) => {
      const { message } = CkptError.wrap(error)
      log.warn('nothing was learnt from an update: {message}', { message })
    })
    return this.#learning
  }

  async #learnNow({ ranks, broadcast, engines }: UpdateTold): Promise<void> {
    const before = this.#document
    this.#learnBroadcast(ranks, broadcast)
    for (const { key, buckets } of engines) this.#learnEngine(key, buckets)
    if (this.#document !== before) await this.#file.write(this.#document)
  }

  /** Waiting for a slow engine to make room counts too: a later update with these ranks has to count on it. */
  #learnBroadcast(ranks: readonly RankInfo[], broadcast: TimedBytes): void {
    const rate = rateOf(broadcast)
    if (ranks.length < 2 || broadcast.bytes < BROADCAST_BYTES_MIN || rate === null) return
    const is = (one: RatesDocument['broadcasts'][number]) => this.#isGroup(one, ranks)
    const before = this.#document.broadcasts.find(is)?.bytes_per_second ?? []
    const group = {
      uuids: ranks.map(({ uuid }) => uuid),
      library: this.#library,
      ...(this.#broadcast === 'nccl' ? { by: 'nccl' as const } : {}),
      bytes_per_second: [...before, rate].slice(-LEARNT_MAX),
    }
    const broadcasts = put(this.#document.broadcasts, group, is)
    this.#document = { ...this.#document, broadcasts }
  }

  #learnEngine(key: string, buckets: TakenBuckets): void {
    const rates = engineRates(buckets)
    if (rates === null) return
    const is = (one: LearntEngine) => one.key === key
    const before = this.#document.engines.find(is)?.learnt ?? []
    const { bucketSeconds, tensorSeconds, reloadBytesPerSecond } = rates
    const learnt = {
      bucket_s: bucketSeconds,
      tensor_s: tensorSeconds,
      reload_bytes_per_second: reloadBytesPerSecond,
    }
    const engine = { key, learnt: [...before, learnt].slice(-LEARNT_MAX) }
    this.#document = { ...this.#document, engines: put(this.#document.engines, engine, is) }
  }

  #isDevice(one: RatesDocument['devices'][number], uuid: string): boolean {
    return one.uuid === uuid && one.library === this.#library
  }

  #isGroup(one: RatesDocument['broadcasts'][number], ranks: readonly RankInfo[]): boolean {
    if ((one.by ?? 'copies') !== this.#broadcast) return false
    if (one.library !== this.#library || one.uuids.length !== ranks.length) return false
    return ranks.every(({ uuid }, i) => one.uuids[i] === uuid)
  }

  async close(): Promise<void> {
    await this.#learning
    await this.#file.close()
  }
}

/** With `entry` as the last one, in the place of the one that it replaces; the oldest ones go. */
function put<T>(entries: readonly T[], entry: T, replaces: (one: T) => boolean): T[] {
  return [...entries.filter((one) => !replaces(one)), entry].slice(-ENTRIES_MAX)
}
