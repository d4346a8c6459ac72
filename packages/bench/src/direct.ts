import { naturalCompare } from '@ckpt/core/checkpoint/natural-order'
import { type Library, selectDevices } from '@ckpt/cuda'
import { type Bench, type BenchContext, MIB } from './bench.ts'
import { countCopies, DirectShare } from './direct-share.ts'
import { claimsOf, type Way, waysOf } from './direct-ways.ts'
import { type DirectWorkload, directWorkloads } from './direct-workloads.ts'
import { engineParameters } from './engine-parameters.ts'
import { layOut, type Model } from './models.ts'
import { parameterMap } from './parameter-map.ts'
import { PinnedCopies } from './pinned-copies.ts'
import { RepeatedPattern } from './repeated-pattern.ts'
import type { Row } from './row.ts'
import { workloadBytes } from './workloads.ts'

/** From here on both models have copies, rows and small tensors. */
const BYTES_LEAST = 16 * MIB
/** Of a size, which says little about a device: the limit need not take long. */
const LIMIT_BYTES_OF_SIZE = 256 * MIB

/** What all rows of a workload have. */
interface Bed {
  readonly library: Library
  readonly device: number
  readonly workload: DirectWorkload
  readonly checkpoint: Model
  readonly pattern: RepeatedPattern
  readonly limit: PinnedCopies
}

/** The copies of a direct update, without an engine: all ranks' shares one after another on one device. */
export const direct: Bench = {
  name: 'direct',
  bytesLeast: BYTES_LEAST,
  async *rows(context) {
    for (const workload of directWorkloads(context.sizes, context.models)) {
      await using stack = new AsyncDisposableStack()
      const bed = makeBed(context, stack, workload)
      for (const [ranks, ways] of Map.groupBy(waysOf(workload), (way) => way.ranks)) {
        using held = new DisposableStack()
        const shares = sharesOf(bed, held, ranks)
        for (const way of ways) yield await measureWay(bed, shares, way)
      }
    }
  },
}

/** `stack` frees what it allocates. */
function makeBed(
  { devices, dir, open }: BenchContext,
  stack: AsyncDisposableStack,
  workload: DirectWorkload,
): Bed {
  const { library: options, ranks } = selectDevices(devices, null)
  const library = open(options)
  const device = ranks[0]?.device ?? 0
  const limitBytes = Math.min(workloadBytes(workload), LIMIT_BYTES_OF_SIZE)
  const limit = new PinnedCopies(stack, devices, open, workload.model ? undefined : limitBytes)
  // as the daemon has them in its memory
  const tensors = workload.tensors.toSorted((a, b) => naturalCompare(a.name, b.name))
  const checkpoint = layOut(workload.name, tensors)
  const room = checkpoint.sources[0]?.bytes[0] ?? 0
  const pattern = new RepeatedPattern(library, stack.use(new DisposableStack()), dir, room)
  return { library, device, workload, checkpoint, pattern, limit }
}

function sharesOf(bed: Bed, stack: DisposableStack, ranks: number): DirectShare[] {
  const { library, device, workload, checkpoint, pattern } = bed
  const { tensors } = workload
  return Array.from({ length: ranks }, (_, rank) => {
    const map = parameterMap(tensors, engineParameters(tensors, rank, ranks))
    return new DirectShare(library, stack, device, checkpoint, pattern, map)
  })
}

async function measureWay(bed: Bed, shares: readonly DirectShare[], way: Way): Promise<Row> {
  const { library, workload, limit } = bed
  using stack = new DisposableStack()
  const plans = shares.map((share) => share.plan(way.gathers ? undefined : 0))
  const signal = library.signalCreate()
  stack.defer(() => library.signalDestroy(signal))
  const staging = library.bufferAlloc(Math.max(1, ...plans.map((plan) => plan.staging.bytes)), 0)
  stack.defer(() => library.bufferFree(staging))
  const means = { library, signal, staging }
  const timed = {
    prepare: () => shares.forEach((share) => share.spoil()),
    run: () => shares.forEach((share, rank) => share.copy(plans[rank]!, means)),
    check: () => {
      const checks = shares.map((share) => share.check())
      const sum = (of: 'compared' | 'wrong') => checks.reduce((total, one) => total + one[of], 0)
      return { compared: sum('compared'), wrong: sum('wrong') }
    },
  }
  const bytes = plans.reduce((sum, plan) => sum + plan.bytes, 0)
  const name = `${workload.name}, ${way.name}`
  const head = { bench: 'direct', case: name, tensors: workload.tensors.length, bytes }
  const row = await limit.measureRow(head, timed, (one) => claimsOf(workload, way, one))
  return { ...row, copies: countCopies(plans) }
}
