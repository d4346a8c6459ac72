import { type Handle, type Library, selectDevices } from '@ckpt/cuda'
import { type Bench, COPY_BYTES_LEAST, MIB, sizeName } from './bench.ts'
import { SourceBytes, spoil } from './device-bytes.ts'
import { type HostSource, hostSources } from './h2d-memory.ts'
import type { Timed } from './measure.ts'
import { rowCopies } from './h2d-rows.ts'
import { measureRow, type RowHead } from './row.ts'
import { finish, type Lane, openLane } from './streams.ts'

const STREAMS = [1, 2, 4] as const
/** What copies that are queued move together. */
const QUEUED_BYTES = { cuda: 256 * MIB, host: 16 * MIB } as const
const LIMIT_BYTES_MOST = 256 * MIB

/** What one run does: copies of `bytes` each, one behind another on each stream. */
interface Copies {
  readonly bytes: number
  readonly count: number
  readonly streams: number
}

/** Host memory into device memory, until the streams have done it: single copies, many that are queued, and copies of rows. */
export const h2d: Bench = {
  name: 'h2d',
  bytesLeast: COPY_BYTES_LEAST,
  async *rows(context) {
    const { devices, sizes, dir, open } = context
    const { library: options, ranks } = selectDevices(devices, null)
    const library = open(options)
    const device = ranks[0]?.device ?? 0
    const largest = Math.max(...sizes)
    using stack = new DisposableStack()
    const room = Math.max(largest, QUEUED_BYTES[library.kind])
    const source = new SourceBytes(library, stack, dir, room)
    const sources = hostSources(context, library, stack, source)
    const memory = library.memoryAlloc(device, room)
    stack.defer(() => library.memoryFree(memory))
    const lanes = Array.from({ length: Math.max(...STREAMS) }, () =>
      openLane(library, stack, device),
    )
    const timed = (from: HostSource, copies: Copies) =>
      copiesOf(library, lanes.slice(0, copies.streams), memory, source, from.buffer, copies)

    const big = { bytes: Math.min(largest, LIMIT_BYTES_MOST), count: 1, streams: 1 }
    const [pinned] = sources as [HostSource]
    const limit = await measureRow(headOf('the limit: pinned', big), timed(pinned, big))
    yield limit
    const limitGbPerSecond = limit.gb_per_s ?? Number.NaN
    for (const bytes of sizes) {
      for (const from of sources) {
        for (const copies of casesOf(bytes, QUEUED_BYTES[library.kind])) {
          const head = { ...headOf(from.name, copies), limitGbPerSecond }
          yield await measureRow(head, timed(from, copies))
        }
      }
    }
    const lane = lanes[0] as Lane
    yield* rowCopies(library, dir, { memory, ...lane }, largest, limitGbPerSecond)
  },
}

/** One copy, and as many as fit into `queuedBytes`, where each stream gets one and they are more than one. */
function casesOf(bytes: number, queuedBytes: number): Copies[] {
  const count = Math.floor(queuedBytes / bytes)
  const queued = STREAMS.filter((streams) => count >= Math.max(2, streams))
  return [{ bytes, count: 1, streams: 1 }, ...queued.map((streams) => ({ bytes, count, streams }))]
}

function headOf(from: string, { bytes, count, streams }: Copies): RowHead {
  const many = count === 1 ? 'one copy' : `${count} on ${streams} stream${streams > 1 ? 's' : ''}`
  return { bench: 'h2d', case: `${sizeName(bytes)} ${from}, ${many}`, bytes: bytes * count }
}

function copiesOf(
  library: Library,
  lanes: readonly Lane[],
  memory: Handle,
  source: SourceBytes,
  buffer: Handle,
  { bytes, count }: Copies,
): Timed {
  const moved = bytes * count
  return {
    prepare: () => spoil(library, memory, moved),
    run: () => {
      for (let copy = 0; copy < count; copy++) {
        const { stream } = lanes[copy % lanes.length] as Lane
        library.copyH2d(stream, memory, copy * bytes, buffer, copy * bytes, bytes)
      }
      finish(library, lanes)
    },
    check: () => source.compare(library, [memory], moved),
  }
}
