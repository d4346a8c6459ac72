import type { TraceAnswer } from '@ckpt/core'
import type { TraceEvent } from '@ckpt/core/update/trace'
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
  readonly #together: PlainSeconds[] = []
  readonly #small: number[] = []
  readonly #empty: number[] = []

  /** @param bytes of the checkpoint that the plain stages would bring, in such pieces through such a ring */
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

  /** All stages at once, as they are at work in an update, and then broadcasts of nearly nothing. */
  async time(): Promise<void> {
    const [ringBytes, pieceBytes, bytes] = [this.#ringBytes, this.#pieceBytes, this.#bytes]
    const whole = { h2d: bytes / this.#members, broadcast: bytes, reload: bytes }
    this.#together.push(await this.#plain.run({ ...whole, pieceBytes, ringBytes }))
    const small = { h2d: 0, broadcast: SMALL_COUNT * SMALL_BYTES, reload: 0 }
    const { broadcast } = await this.#plain.run({ ...small, pieceBytes: SMALL_BYTES, ringBytes })
    this.#small.push(broadcast / SMALL_COUNT)
  }

  /** An update whose buckets have nearly no bytes: of each, what the engine took that took longest. */
  takeEmpty(trace: TraceAnswer): void {
    const spans = reloadSeconds(trace)
    const buckets = Math.min(...spans.map(({ length }) => length))
    for (let bucket = 0; bucket < buckets; bucket++) {
      this.#empty.push(Math.max(...spans.map((rank) => rank[bucket] as number)))
    }
  }

  /** Medians. */
  get rates(): StageRates {
    const seconds = (stage: keyof PlainSeconds) => median(this.#together.map((one) => one[stage]))
    const broadcastSeconds = median(this.#small)
    const pieces = this.#bytes / this.#pieceBytes
    return {
      h2dBytesPerSecond: this.#bytes / this.#members / seconds('h2d'),
      // each of the pieces took that too
      broadcastBytesPerSecond: this.#bytes / (seconds('broadcast') - pieces * broadcastSeconds),
      broadcastSeconds,
      reloadBytesPerSecond: this.#bytes / seconds('reload'),
      bucketSeconds: median(this.#empty),
    }
  }
}

/** Per rank: of each bucket, from when its list was sent until it was acknowledged. */
export function reloadSeconds({ traceEvents }: TraceAnswer): number[][] {
  const rows = new Map<number, number[]>()
  for (const event of traceEvents as TraceEvent[]) {
    if (event.ph === 'M') {
      if (event.name === 'thread_name' && event.args.name === 'reload') rows.set(event.tid, [])
    } else rows.get(event.tid)?.push(event.dur / 1e6)
  }
  return [...rows.values()]
}
