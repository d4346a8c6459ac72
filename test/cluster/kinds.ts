/** What a cluster of the tests is made of, for updates through the ring and for direct ones. */
import type { CheckpointShape } from './checkpoint.ts'

const MIB = 2 ** 20

/** How the updates go whose failures are tried. */
export type Way = 'ring' | 'direct'

export interface ClusterKind {
  readonly way: Way
  readonly nodes: number
  readonly shape: CheckpointShape
  /** More options of each daemon, and of its engine. */
  readonly serve: readonly string[]
  readonly engine: readonly string[]
  /** Of the daemons' environment. */
  readonly env: Readonly<Record<string, string>>
  /** Of the updates that are asked for. */
  readonly mode: 'auto' | 'direct'
}

/** With buckets of half a MiB two tensors fit. */
const RING_SHAPE: CheckpointShape = {
  tensors: 32,
  bytes: 200_000,
  // the first and the third, or the third alone, have every tensor
  held: [[0], [1], [0, 1, 2]],
}
/** Buckets of one update through the ring. */
export const BUCKETS = RING_SHAPE.tensors / 2
/** So that a direct update takes two seconds, of which the leader hears every tenth. */
const COPIED_BYTES_PER_SECOND = 80 * MIB

export const KINDS: Readonly<Record<Way, ClusterKind>> = {
  ring: {
    way: 'ring',
    nodes: 3,
    shape: RING_SHAPE,
    // so that an update has many buckets, and a rank that stands still is soon missed by the others
    serve: ['--ring-gib', String(2 ** -9), '--bucket-mib', '0.5'],
    engine: [],
    env: {},
    mode: 'auto',
  },
  direct: {
    way: 'direct',
    nodes: 2,
    // each reads five slots of the other, one more than it has: something is still to be read when the first are copied
    shape: { tensors: 32, bytes: 5 * MIB - 1024, held: [[0], [1]] },
    serve: ['--ring-gib', String(2 ** -4), '--bucket-mib', '16'],
    engine: ['--direct'],
    env: {
      CKPT_HOST_COPY_BYTES_PER_SECOND: String(COPIED_BYTES_PER_SECOND),
      // what is read does not come without its owner
      UCX_TLS: 'tcp',
    },
    mode: 'direct',
  },
}
