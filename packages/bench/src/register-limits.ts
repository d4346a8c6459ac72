import { availableParallelism } from 'node:os'
import type { Handle, Library, ReadPiece } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { median, secondsOf } from './measure.ts'

const READ_PIECE_BYTES = 16 * MIB
const READ_MS_MAX = 60_000
/** Threads of a read: none of these is the fastest on every machine. */
const READ_THREADS = [4, 8, 16] as const

/** What a registration cannot beat, timed between its runs, so that what slows the machine down slows both. */
export interface RegisterLimit {
  /** Does it once with these files. */
  time(files: readonly string[]): Promise<void>
  /** NaN before the first time. */
  readonly gbPerSecond: number
}

/** Reads into memory that is pinned, and nothing else: the median of the number of threads that is the fastest. */
export class ReadLimit implements RegisterLimit {
  readonly #library: Library
  readonly #buffer: Handle
  readonly #threads: readonly number[]
  readonly #rates = new Map<number, number[]>()
  #turn = 0

  /** `bytes`: at least those of all files together. `stack` frees the memory. */
  constructor(library: Library, stack: DisposableStack, bytes: number) {
    this.#library = library
    this.#buffer = library.bufferAlloc(bytes, 0)
    stack.defer(() => library.bufferFree(this.#buffer))
    const cores = availableParallelism()
    this.#threads = [...new Set(READ_THREADS.map((threads) => Math.min(threads, cores)))]
  }

  async time(paths: readonly string[]): Promise<void> {
    const library = this.#library
    using stack = new DisposableStack()
    const pieces = this.#pieces(openFiles(library, stack, paths))
    const bytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0)
    const threads = this.#threads[this.#turn++ % this.#threads.length] as number
    const seconds = await secondsOf(() => {
      const read = library.readStart(pieces, threads, 0)
      stack.defer(() => library.readDestroy(read))
      library.readWait(read, 0, READ_MS_MAX)
    })
    const rates = this.#rates.get(threads) ?? []
    this.#rates.set(threads, [...rates, bytes / seconds / 1e9])
  }

  #pieces(files: readonly { file: Handle; bytes: number }[]): ReadPiece[] {
    const pieces: ReadPiece[] = []
    let bufferOffset = 0
    for (const { file, bytes: fileBytes } of files) {
      for (let fileOffset = 0; fileOffset < fileBytes; fileOffset += READ_PIECE_BYTES) {
        const bytes = Math.min(READ_PIECE_BYTES, fileBytes - fileOffset)
        pieces.push({ file, buffer: this.#buffer, fileOffset, bufferOffset, bytes })
        bufferOffset += bytes
      }
    }
    return pieces
  }

  get gbPerSecond(): number {
    const rates = [...this.#rates.values()].map(median)
    return rates.length === 0 ? Number.NaN : Math.max(...rates)
  }
}

/** Maps and pins the files, one after another, and nothing else. */
export class MapLimit implements RegisterLimit {
  readonly #library: Library
  readonly #rates: number[] = []

  constructor(library: Library) {
    this.#library = library
  }

  async time(paths: readonly string[]): Promise<void> {
    const library = this.#library
    using stack = new DisposableStack()
    const files = openFiles(library, stack, paths)
    for (const { file } of files) library.fileLease(file, 0)
    const seconds = await secondsOf(() => {
      for (const { file } of files) {
        const buffer = library.bufferMap(file)
        stack.defer(() => library.bufferFree(buffer))
      }
    })
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
    this.#rates.push(bytes / seconds / 1e9)
  }

  get gbPerSecond(): number {
    return median(this.#rates)
  }
}

function openFiles(library: Library, stack: DisposableStack, paths: readonly string[]) {
  return paths.map((path) => {
    const file = library.fileOpen(path)
    stack.defer(() => library.fileClose(file))
    return { file, bytes: library.fileDescribe(file).bytes }
  })
}
