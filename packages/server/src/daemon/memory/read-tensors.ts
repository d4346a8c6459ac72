import { availableParallelism } from 'node:os'
import { CkptError } from '@ckpt/core/api/errors'
import type { Handle, Library, ReadPiece } from '@ckpt/cuda'
import type { ArenaBuffer } from './arena.ts'
import type { OpenedFile } from './path-guard.ts'
import { clockMs } from '../clock.ts'
import { turn } from './turn.ts'

/** Where a range of a file goes in a linear space of buffers. */
export interface Placement {
  readonly source: OpenedFile
  readonly fileOffset: number
  readonly spaceOffset: number
  readonly bytes: number
}

const THREADS_MAX = 16
/** Small enough that all threads work on one large tensor. */
const PIECE_BYTES = 16 * 2 ** 20
/** How long a wait for a read may keep other requests of the Worker waiting. */
export const WAIT_SLICE_MS = 10

/** A read that runs. Whoever started it destroys `read`. */
export interface TensorRead {
  readonly read: Handle
  readonly pieces: readonly ReadPiece[]
  /** Where each piece begins in the space, ascending. */
  readonly pieceStarts: Float64Array
  readonly placements: readonly Placement[]
  /** Milliseconds of {@link clockMs}. */
  readonly startedMs: number
}

/**
 * Starts reading files into the buffers, which lie one after another in the space; null: there is nothing to read.
 *
 * @param spareCores left to those who send what has been read
 */
export function startRead(
  library: Library,
  buffers: readonly ArenaBuffer[],
  placements: readonly Placement[],
  spareCores: number,
): TensorRead | null {
  const { pieces, pieceStarts } = makePieces(buffers, joinNeighbours(placements))
  if (pieces.length === 0) return null
  const cores = availableParallelism()
  const threads = Math.min(
    THREADS_MAX,
    Math.max(cores - spareCores, Math.ceil(cores / 2)),
    pieces.length,
  )
  const startedMs = clockMs()
  const read = library.readStart(pieces, [Math.ceil(threads / 2), threads], 0)
  return { read, pieces, pieceStarts, placements, startedMs }
}

/**
 * Waits for the end of a read. `stopped` is asked while waiting; it throws to end the wait.
 *
 * @throws CkptError `file_changed` or `file_unreadable` with the file's name
 */
export async function finishRead(
  library: Library,
  { read, pieces, placements }: TensorRead,
  stopped: () => void,
): Promise<void> {
  for (;;) {
    const progress = library.readQuery(read)
    if (progress.state === 'done') return
    if (progress.state === 'failed') {
      const file = pieces[progress.failedPiece]?.file
      throw readFailure(library, placements, file, library.readError(read))
    }
    waitSlice(library, read)
    await turn()
    stopped()
  }
}

function waitSlice(library: Library, read: Handle): void {
  try {
    library.readWait(read, 0, WAIT_SLICE_MS)
  } catch (error) {
    // a failed read is reported by the query, which knows the piece
    if (!(error instanceof CkptError)) throw error
  }
}

function readFailure(
  library: Library,
  placements: readonly Placement[],
  file: Handle | undefined,
  text: string,
): CkptError {
  const source = placements.find((placement) => placement.source.file === file)?.source
  if (source === undefined) return new CkptError('file_unreadable', text)
  try {
    library.fileCheck(source.file)
  } catch {
    return new CkptError('file_changed', `${source.path}: changed while it was being read`)
  }
  return new CkptError('file_unreadable', `${source.path}: ${text}`)
}

function joinNeighbours(placements: readonly Placement[]): Placement[] {
  const joined: Placement[] = []
  for (const next of placements) {
    const last = joined[joined.length - 1]
    if (
      last !== undefined &&
      last.source === next.source &&
      last.fileOffset + last.bytes === next.fileOffset &&
      last.spaceOffset + last.bytes === next.spaceOffset
    ) {
      joined[joined.length - 1] = { ...last, bytes: last.bytes + next.bytes }
    } else if (next.bytes > 0) joined.push(next)
  }
  return joined
}

/** Cuts at buffers' ends and at {@link PIECE_BYTES}. Placements ascend in the space. */
function makePieces(buffers: readonly ArenaBuffer[], placements: readonly Placement[]) {
  const pieces: ReadPiece[] = []
  const starts: number[] = []
  let index = 0
  let start = 0
  for (const { source, fileOffset, spaceOffset, bytes } of placements) {
    for (let done = 0; done < bytes; ) {
      const at = spaceOffset + done
      while (at >= start + buffers[index]!.bytes) {
        start += buffers[index]!.bytes
        index += 1
      }
      const { buffer, bytes: bufferBytes } = buffers[index]!
      const length = Math.min(bytes - done, PIECE_BYTES, start + bufferBytes - at)
      starts.push(at)
      pieces.push({
        file: source.file,
        buffer,
        fileOffset: fileOffset + done,
        bufferOffset: at - start,
        bytes: length,
      })
      done += length
    }
  }
  return { pieces, pieceStarts: Float64Array.from(starts) }
}
