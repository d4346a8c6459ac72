import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Handle, Library } from '@ckpt/cuda'
import { writePattern } from './pattern-file.ts'
import { WAIT_MS } from './streams.ts'

const FILE_BYTES = 2 ** 22
/** A prime: only bytes whose places are a multiple of it apart are the same, and what lies in a checkpoint is even. */
const PATTERN_BYTES = FILE_BYTES - 3
const READ_THREADS = 4

/**
 * Pinned host memory of any size that holds a pattern again and again, and the same bytes for JavaScript, which could neither
 * view nor keep the whole.
 */
export class RepeatedPattern {
  readonly buffer: Handle
  readonly #pattern: Uint8Array

  /** `stack` frees the host memory. */
  constructor(library: Library, stack: DisposableStack, dir: string, bytes: number) {
    const path = join(dir, 'repeated-pattern')
    writePattern(path, FILE_BYTES, 1)
    this.#pattern = new Uint8Array(readFileSync(path)).subarray(0, PATTERN_BYTES)
    this.buffer = library.bufferAlloc(bytes, 0)
    stack.defer(() => library.bufferFree(this.buffer))
    fillFrom(library, this.buffer, path, bytes)
    rmSync(path)
  }

  /** Writes what the memory holds from `from` on to `target` from `at` on. */
  copyTo(target: Uint8Array, at: number, from: number, bytes: number): void {
    let begin = from % PATTERN_BYTES
    for (let done = 0; done < bytes; begin = 0) {
      const count = Math.min(PATTERN_BYTES - begin, bytes - done)
      target.set(this.#pattern.subarray(begin, begin + count), at + done)
      done += count
    }
  }
}

function fillFrom(library: Library, buffer: Handle, path: string, bytes: number): void {
  const count = Math.ceil(bytes / PATTERN_BYTES)
  const file = library.fileOpen(path)
  try {
    const pieces = Array.from({ length: count }, (_, index) => {
      const bufferOffset = index * PATTERN_BYTES
      const left = Math.min(PATTERN_BYTES, bytes - bufferOffset)
      return { file, buffer, fileOffset: 0, bufferOffset, bytes: left }
    })
    const read = library.readStart(pieces, READ_THREADS, 0)
    try {
      library.readWait(read, 0, WAIT_MS)
    } finally {
      library.readDestroy(read)
    }
  } finally {
    library.fileClose(file)
  }
}
