import { type Library, type RankInfo, selectDevices } from '@ckpt/cuda'
import { type Bench, COPY_BYTES_LEAST, sizeName } from './bench.ts'
import { allocate, joinGroup, SourceBytes, spoil } from './device-bytes.ts'
import type { Timed } from './measure.ts'
import { measureRow } from './row.ts'
import { finish } from './streams.ts'

const RANKS = [2, 4] as const
const ROOT = 0
/** A broadcast's busbw is its algbw: every byte leaves the root once (PERFORMANCE.md of nccl-tests). */
const BUS_FACTOR = 1

/** Device memory of rank 0 into that of every rank, until all streams have done it. */
export const broadcast: Bench = {
  name: 'broadcast',
  bytesLeast: COPY_BYTES_LEAST,
  async *rows({ devices, sizes, dir, open }) {
    for (const count of RANKS) {
      const { library: options, ranks } = selectDevices(devices, count)
      const library = open(options)
      for (const bytes of sizes) {
        using stack = new DisposableStack()
        const source = new SourceBytes(library, stack, dir, bytes)
        const timed = broadcasts(library, stack, ranks, source)
        const name = `${count} ranks, ${sizeName(bytes)}`
        const head = { bench: 'broadcast', case: name, bytes, busFactor: BUS_FACTOR }
        yield await measureRow(head, timed)
      }
    }
  },
}

function broadcasts(
  library: Library,
  stack: DisposableStack,
  ranks: readonly RankInfo[],
  source: SourceBytes,
): Timed {
  const { bytes } = source
  const members = ranks.map(({ device }) => allocate(library, stack, device, bytes))
  const root = members[ROOT]
  if (root === undefined) throw new Error('a broadcast has a root')
  library.copyH2d(root.stream, root.memory, 0, source.buffer, 0, bytes)
  finish(library, [root])
  const group = joinGroup(library, stack, members)
  return {
    prepare: () => {
      for (const { memory } of members) if (memory !== root.memory) spoil(library, memory, bytes)
    },
    run: () => {
      for (const member of members.keys()) library.groupBroadcast(group, member, ROOT, 0, bytes)
      finish(library, members)
    },
    check: () =>
      source.compare(
        library,
        members.map(({ memory }) => memory),
      ),
  }
}
