import { join } from 'node:path'
import { type Handle, type Library, selectDevices } from '@ckpt/cuda'
import { type BenchContext, GIB, KIB, MIB, sizeName } from './bench.ts'
import type { UpdateTimeline } from './calibration.ts'
import { layersOf } from './checkpoint.ts'
import { ClusterUpdates } from './cluster-updates.ts'
import { allocate, type DeviceBytes, joinGroup } from './device-bytes.ts'
import { median } from './measure.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { SHM } from './places.ts'
import { type PredictedJob, predictedRows, type RateSource } from './predicted-job.ts'
import type { Row } from './row.ts'
import { layoutOfSharedDevice, type StageRates } from './simulated-update.ts'
import { finish } from './streams.ts'
import { writePair } from './versions.ts'

const RANKS = [1, 2, 4, 8] as const
const WARM_UPS = 3
const ROUNDS = 7

/** How an update is cut and shown: on the GPU, and small on the host library, of whose figures nothing is asked. */
interface SharedLayout {
  readonly ringBytes: number
  readonly bucketBytes: number
  /** Of the update that shows what a bucket takes an engine. */
  readonly calibratedBytes: number
  /** Of the copies and broadcasts that are timed between the updates. */
  readonly pinnedBytes: number
  readonly pieceBytes: number
  readonly claims: boolean
}

const ON_GPU: SharedLayout = {
  ringBytes: GIB,
  bucketBytes: 128 * MIB,
  calibratedBytes: GIB,
  pinnedBytes: 4 * GIB,
  pieceBytes: 64 * MIB,
  claims: true,
}

const ON_HOST: SharedLayout = {
  ringBytes: 16 * MIB,
  bucketBytes: 4 * MIB,
  calibratedBytes: 16 * MIB,
  pinnedBytes: 64 * MIB,
  pieceBytes: 4 * MIB,
  claims: false,
}

/** Updates of ranks that share a device, with an engine worker each, and their prediction. */
export async function* sharedDeviceRows(
  context: BenchContext,
  counts: readonly number[] = RANKS,
): AsyncGenerator<Row> {
  const { kind } = selectDevices(context.devices, null).library
  for (const count of counts) yield* countRows(context, count, kind === 'cuda' ? ON_GPU : ON_HOST)
}

async function* countRows(
  context: BenchContext,
  count: number,
  layout: SharedLayout,
): AsyncGenerator<Row> {
  const { devices, sizes, dir, note } = context
  await using stack = new AsyncDisposableStack()
  const ring = ['--ring-gib', String(layout.ringBytes / GIB)]
  const flags = [...ring, '--bucket-mib', String(layout.bucketBytes / MIB)]
  const own = join(dir, `ranks-${count}`)
  const updates = await ClusterUpdates.startOne(stack, devices, count, own, flags)
  const versionsOf = (bytes: number) => {
    const workload = { name: sizeName(bytes), tensors: layersOf(bytes), model: false }
    return writePair(stack, workload, count, SHM)
  }
  const small = await versionsOf(layout.calibratedBytes)
  await updates.register(small)
  const jobs: PredictedJob[] = []
  for (const bytes of sizes) {
    const versions = await versionsOf(bytes)
    const shared = await layoutOfSharedDevice(versions.present.files, count)
    await updates.register(versions)
    const name = `${count} ${count === 1 ? 'rank' : 'ranks'} on one device, ${sizeName(bytes)}`
    jobs.push({ name, versions, layout: shared, made: [] })
  }
  const calibration = new SharedCalibration(stack, context, count, layout)
  const rounds = { warmUps: WARM_UPS, rounds: ROUNDS, claims: layout.claims }
  const what = `${count} on one device`
  yield* predictedRows({ what, updates, calibration, small, jobs, ...rounds }, note)
}

/** The link's rate and that of plain broadcasts between so many memories of the device, timed between the updates; of the engines what a smaller update shows. */
class SharedCalibration implements RateSource {
  readonly #copies: PinnedCopies
  readonly #broadcasts: PlainBroadcasts | null
  readonly #buckets: number[] = []
  readonly #opens: number[] = []

  constructor(
    stack: AsyncDisposableStack,
    { devices, open }: BenchContext,
    count: number,
    { pinnedBytes, pieceBytes }: SharedLayout,
  ) {
    this.#copies = new PinnedCopies(stack, devices, open, pinnedBytes)
    const { library, ranks } = selectDevices(devices, count)
    const all = ranks.map(({ device }) => device)
    const plain = () => new PlainBroadcasts(stack, open(library), all, pieceBytes)
    this.#broadcasts = count === 1 ? null : plain()
  }

  time(): void {
    this.#copies.time()
    this.#broadcasts?.time()
  }

  /** Of each bucket what the engine took that took longest. */
  takeUpdate({ reloadSeconds, openSeconds }: UpdateTimeline): void {
    for (const [bucket] of reloadSeconds[0]?.entries() ?? []) {
      this.#buckets.push(Math.max(...reloadSeconds.map((rank) => rank[bucket] ?? 0)))
    }
    this.#opens.push(openSeconds)
  }

  /** Medians. All buckets but the last are of one size: what one takes has its bytes in it. */
  get rates(): StageRates {
    return {
      h2dBytesPerSecond: this.#copies.gbPerSecond * 1e9,
      ...(this.#broadcasts?.rates ?? { broadcastBytesPerSecond: Infinity, broadcastSeconds: 0 }),
      reloadBytesPerSecond: Infinity,
      bucketSeconds: median(this.#buckets),
      openSeconds: median(this.#opens),
    }
  }
}

const PIECES = 32
const SMALL_BYTES = 64 * KIB

/** Broadcasts by copies from turning roots, as a daemon makes them by default. */
class PlainBroadcasts {
  readonly #library: Library
  readonly #members: readonly DeviceBytes[]
  readonly #group: Handle
  readonly #pieceBytes: number
  readonly #large: number[] = []
  readonly #small: number[] = []

  constructor(
    stack: AsyncDisposableStack,
    library: Library,
    devices: readonly number[],
    pieceBytes: number,
  ) {
    const own = stack.use(new DisposableStack())
    this.#library = library
    this.#pieceBytes = pieceBytes
    this.#members = devices.map((device) => allocate(library, own, device, pieceBytes))
    this.#group = joinGroup(library, own, this.#members)
  }

  time(): void {
    this.#large.push(this.#seconds(this.#pieceBytes))
    this.#small.push(this.#seconds(SMALL_BYTES))
  }

  /** Of one of them. */
  #seconds(bytes: number): number {
    const members = this.#members
    const beginMs = performance.now()
    for (let piece = 0; piece < PIECES; piece++) {
      const root = piece % members.length
      for (const member of members.keys()) {
        this.#library.groupBroadcast(this.#group, member, root, 0, bytes)
      }
    }
    finish(this.#library, members)
    return (performance.now() - beginMs) / 1000 / PIECES
  }

  get rates(): Pick<StageRates, 'broadcastBytesPerSecond' | 'broadcastSeconds'> {
    const broadcastSeconds = median(this.#small)
    const seconds = Math.max(Number.EPSILON, median(this.#large) - broadcastSeconds)
    return { broadcastBytesPerSecond: this.#pieceBytes / seconds, broadcastSeconds }
  }
}
