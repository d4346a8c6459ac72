import { KIB, MIB } from './bench.ts'

/** How fast devices are, and how an update of theirs is cut. */
export interface PredictedLayout {
  readonly name: string
  /** Of the daemons, the engines and the processes that measure. */
  readonly env: Readonly<Record<string, string>>
  readonly ringBytes: number
  readonly bucketBytes: number
  /** As many as fit into a bucket. */
  readonly layersPerPiece: number
  /** Of each plain stage: so many that their beginning, which is not at once in all processes, does not count. */
  readonly pieces: number
  /** Of each daemon, of the update that shows what a bucket takes beside its bytes. */
  readonly calibratedBuckets: number
  /** Whether a prediction is to be right: the simulation does not know of processors that stages take from each other. */
  readonly claims: boolean
}

/** A matrix of 1 MiB and a vector of 2 KiB: see `layersOf`. */
export const LAYER_BYTES = MIB + 2 * KIB

/**
 * With links far below what two cores can do for all devices and engines the stages do not take processors from each other. A link
 * makes up for a gap of 5 ms between two copies, so copies take many times that.
 */
export const LAYOUTS: readonly PredictedLayout[] = [
  {
    name: 'links of 50 MB/s',
    env: { CKPT_HOST_COPY_BYTES_PER_SECOND: String(50e6) },
    ringBytes: 32 * MIB,
    bucketBytes: 8 * MIB,
    layersPerPiece: 7,
    pieces: 8,
    calibratedBuckets: 1,
    claims: true,
  },
  {
    name: 'no limit',
    env: {},
    ringBytes: 16 * MIB,
    bucketBytes: 4 * MIB,
    layersPerPiece: 3,
    pieces: 32,
    calibratedBuckets: 3,
    claims: false,
  },
]
