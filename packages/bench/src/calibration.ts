import type { Trace, TraceAnswer } from '@ckpt/core'
import type { Stage } from '@ckpt/core/update/simulate'
import { spansOf, timelineRows } from '@ckpt/core/update/trace'
import { median } from './measure.ts'
import type { PlainCluster } from './plain-cluster.ts'
import type { PlainSeconds } from './plain-stages.ts'
import type { StageRates } from './simulated-update.ts'

/** Of a broadcast whose bytes take no time, and how many of them. */
const SMALL_BYTES = 4096
const SMALL_COUNT = 32

/** Rates that are measured apart from the updates that are predicted with them. */
export class Calibration {
  readonly #plain: Pick<PlainCluster, 'run'>
  readonly #members: number
  readonly #bytes: number
  readonly #pieceBytes: number
  readonly #ringBytes: number
  readonly #alone: PlainSeconds[] = []
  readonly #together: PlainSeconds[] = []
  readonly #small: number[] = []
  readonly #buckets: number[] = []
  readonly #opens: number[] = []

  /** @param sizes what the plain stages bring, in such pieces through such a ring */
  constructor(
    plain: Pick<PlainCluster, 'run'>,
    members: number,
    sizes: { readonly bytes: number; readonly pieceBytes: number; readonly ringBytes: number },
  ) {
    this.#plain = plain
    this.#members = members
    this.#bytes = sizes.bytes
    this.#pieceBytes = sizes.pieceBytes
    this.#ringBytes = sizes.ringBytes
  }

  /** The copies of every process, without a broadcast; broadcasts while copies go on at their pace; broadcasts of nearly nothing. */
  async time(): Promise<void> {
    const [ringBytes, pieceBytes, bytes] = [this.#ringBytes, this.#pieceBytes, this.#bytes]
    const sizes = { ringBytes, pieceBytes, h2d: bytes / this.#members, broadcast: bytes }
    const none = { ...sizes, h2d: 0, broadcast: 0, reload: 0 }
    const h2d = await this.#plain.run({ ...none, h2d: sizes.h2d })
    const reload = await this.#plain.run({ ...none, reload: bytes })
    this.#alone.push({ ...h2d, reload: reload.reload })
    this.#together.push(await this.#plain.run({ ...sizes, reload: bytes }))
    const small = { ...none, pieceBytes: SMALL_BYTES, broadcast: SMALL_COUNT * SMALL_BYTES }
    this.#small.push((await this.#plain.run(small)).broadcast / SMALL_COUNT)
  }

  /** An update of buckets that are each as large as a piece: of each, what the engine took that took longest. */
  takeUpdate(timeline: UpdateTimeline): void {
    const { reloadSeconds, openSeconds } = timeline
    const buckets = Math.min(...reloadSeconds.map(({ length }) => length))
    for (let bucket = 0; bucket < buckets; bucket++) {
      this.#buckets.push(Math.max(...reloadSeconds.map((rank) => rank[bucket] as number)))
    }
    this.#opens.push(openSeconds)
  }

  /** Medians. */
  get rates(): StageRates {
    const of = (all: readonly PlainSeconds[], stage: Stage) => median(all.map((one) => one[stage]))
    const broadcastSeconds = median(this.#small)
    const pieces = this.#bytes / this.#pieceBytes
    const reloadBytesPerSecond = this.#bytes / of(this.#alone, 'reload')
    const broadcasts = of(this.#together, 'broadcast') - pieces * broadcastSeconds
    return {
      h2dBytesPerSecond: this.#bytes / this.#members / of(this.#alone, 'h2d'),
      // each of the pieces took that too
      broadcastBytesPerSecond: this.#bytes / broadcasts,
      broadcastSeconds,
      reloadBytesPerSecond,
      // what is not the bytes': a link that makes up for a gap may leave nothing
      bucketSeconds: Math.max(0, median(this.#buckets) - this.#pieceBytes / reloadBytesPerSecond),
      openSeconds: median(this.#opens),
    }
  }
}

/** What a trace says of an update through the ring. */
export interface UpdateTimeline {
  /** Per rank: of each bucket, from when its list was sent until it was acknowledged. */
  readonly reloadSeconds: readonly (readonly number[])[]
  /** From the first copy until the transfer began: every engine had opened its ring. */
  readonly openSeconds: number
  /** From the first copy until the last engine had acknowledged the last bucket. */
  readonly totalSeconds: number
}

/** @throws Error where a row is missing */
export function timelineOf(trace: TraceAnswer): UpdateTimeline {
  const rows = timelineRows(trace as Trace).filter(({ spans }) => spans.length > 0)
  const called = (name: string) => rows.filter((row) => row.name === name).map(spansOf)
  const reloads = called('reload')
  const transfer = called('phases')
    .flat()
    .find(({ name }) => name === 'transfer')
  const copies = called('h2d').flat()
  if (transfer === undefined || reloads.length === 0 || copies.length === 0) {
    throw new Error('it is no trace of an update through the ring')
  }
  const firstMs = Math.min(...copies.map(({ beginMs }) => beginMs))
  const lastMs = Math.max(...reloads.flat().map(({ endMs }) => endMs))
  return {
    reloadSeconds: reloads.map((row) => row.map(({ beginMs, endMs }) => (endMs - beginMs) / 1000)),
    openSeconds: Math.max(0, transfer.beginMs - firstMs) / 1000,
    totalSeconds: (lastMs - firstMs) / 1000,
  }
}
