import { CkptError } from '@ckpt/core/api/errors'
import { arrange } from '@ckpt/core/checkpoint/arrange'
import { buildTable } from '@ckpt/core/checkpoint/build-table'
import { naturalOrder } from '@ckpt/core/checkpoint/natural-order'
import type { SourceSpace } from '@ckpt/core/checkpoint/table'
import type { Handle, Library, P2pPiece } from '@ckpt/cuda'
import { bufferFrom } from '../rank/source-buffer.ts'
import { RemoteSources } from '../rank/remote-sources.ts'
import type { Arena, ArenaBuffer } from './arena.ts'
import type { Part } from './part.ts'
import { sourceSpace } from './part-loader.ts'
import type { PullPartRequest } from './protocol.ts'
import { WAIT_SLICE_MS } from './read-tensors.ts'
import { turn } from './turn.ts'

export interface PullContext {
  readonly library: Library
  readonly arena: Arena
  /** Throws when the pull is to end. */
  readonly stopped: () => void
}

/** Of one source buffer. */
interface Range {
  readonly owner: number
  /** Which of its buffers. */
  readonly part: number
  readonly remoteOffset: number
  readonly bufferOffset: number
  bytes: number
}

/** What goes into one buffer of the arena. */
interface Job {
  readonly buffer: Handle
  readonly ranges: Range[]
  bytes: number
}

/** So that several network devices have some of what each buffer gets. */
const JOB_BYTES = 64 * 2 ** 20
const JOB_RANGES_MAX = 65_536
/** Of each reader: one is under way while the next one begins. */
const JOBS_AT_A_TIME = 2

/**
 * Copies tensors of other daemons' memory into the arena, in natural order as files are read. What fails leaves nothing behind.
 *
 * @throws HostMemoryError before anything is read; CkptError `not_supported` without UCX, `node_lost`, `file_changed` of a file that an
 *   owner holds in place, and what `stopped` throws
 */
export async function pullPart(context: PullContext, request: PullPartRequest): Promise<Part> {
  const { arena } = context
  const { table } = request
  const order = [...naturalOrder(table.names)]
  const { offsets, totalBytes } = arrange(order.map((row) => table.bytes[row] as number))
  const taking = await arena.take(totalBytes)
  const source = sourceSpace([], [], 0, taking)
  try {
    await readAll(context, request, jobsOf(request, order, offsets, source, taking.buffers))
  } catch (error) {
    arena.undo(taking)
    throw error
  }
  const rows = order.map((row, place) => ({
    name: table.names[row]!,
    dtype: table.dtypes[row]!,
    shape: table.shapes[row]!,
    bytes: table.bytes[row]!,
    owner: 0,
    offset: offsets[place]!,
  }))
  return {
    table: buildTable(rows),
    source,
    mapped: [],
    arena: taking.buffers,
    shared: null,
    origins: rows.map(() => 'memory of another daemon'),
    reading: null,
  }
}

/** In the order of the arena. A tensor may reach from one buffer into the next, on either side. */
function jobsOf(
  { table, sources }: PullPartRequest,
  order: readonly number[],
  offsets: Float64Array,
  target: SourceSpace,
  buffers: readonly ArenaBuffer[],
): Job[] {
  const jobs: Job[] = []
  for (const [place, row] of order.entries()) {
    const owner = table.owners[row] as number
    const source = sources[owner] as SourceSpace
    const bytes = table.bytes[row] as number
    for (let done = 0; done < bytes; ) {
      const at = (offsets[place] as number) + done
      const to = bufferFrom(target, at)
      const bufferOffset = at - target.starts[to]!
      const from = (table.offsets[row] as number) + done
      const part = bufferFrom(source, from)
      const remoteOffset = from - source.starts[part]!
      const left = Math.min(source.bytes[part]! - remoteOffset, target.bytes[to]! - bufferOffset)
      const length = Math.min(bytes - done, left, JOB_BYTES)
      addRange(jobs, buffers[to]!.buffer, {
        owner,
        part,
        remoteOffset,
        bufferOffset,
        bytes: length,
      })
      done += length
    }
  }
  return jobs
}

function addRange(jobs: Job[], buffer: Handle, range: Range): void {
  const job = jobs.at(-1)
  const fits = job !== undefined && job.bytes + range.bytes <= JOB_BYTES
  if (!fits || job.buffer !== buffer || job.ranges.length === JOB_RANGES_MAX) {
    jobs.push({ buffer, ranges: [range], bytes: range.bytes })
    return
  }
  job.bytes += range.bytes
  const last = job.ranges.at(-1)
  const joins =
    last?.owner === range.owner &&
    last.part === range.part &&
    last.remoteOffset + last.bytes === range.remoteOffset &&
    last.bufferOffset + last.bytes === range.bufferOffset
  if (joins) last.bytes += range.bytes
  else job.ranges.push(range)
}

async function readAll(
  { library, stopped }: PullContext,
  { remotes, devices }: PullPartRequest,
  jobs: readonly Job[],
): Promise<void> {
  const signal = library.signalCreate()
  const readers = devices.map((own) => new RemoteSources(library, own))
  const running = new Map<Handle, RemoteSources>()
  try {
    const attached = readers.map((reader) => ({ reader, handles: reader.attach(remotes) }))
    for (let next = 0; next < jobs.length || running.size > 0; ) {
      stopped()
      for (const { reader, handles } of attached) {
        const under = [...running.values()].filter((one) => one === reader).length
        for (const job of jobs.slice(next, next + JOBS_AT_A_TIME - under)) {
          running.set(library.p2p.readStart(piecesOf(job, handles), job.buffer, signal), reader)
          next++
        }
      }
      waitSlice(library, signal)
      for (const read of running.keys()) {
        if (!library.p2p.readQuery(read)) continue
        library.p2p.readDestroy(read)
        running.delete(read)
      }
      await turn()
    }
  } finally {
    // what goes on writes into the memory until it has ended
    for (const reader of readers) reader.close()
    for (const read of running.keys()) library.p2p.readDestroy(read)
    library.signalDestroy(signal)
  }
}

function piecesOf({ ranges }: Job, handles: readonly (Uint32Array | null)[]): P2pPiece[] {
  return ranges.map(({ owner, part, ...range }) => {
    const remote = handles[owner]?.[part]
    if (remote === undefined) throw new Error(`owner ${owner} has no buffer ${part} to read`)
    return { remote, ...range }
  })
}

function waitSlice(library: Library, signal: Handle): void {
  try {
    library.signalWait(signal, WAIT_SLICE_MS)
  } catch (error) {
    // nothing has ended in this time
    if (!(error instanceof CkptError)) throw error
  }
}
