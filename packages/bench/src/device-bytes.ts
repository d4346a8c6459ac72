import { join } from 'node:path'
import type { Handle, Library } from '@ckpt/cuda'
import { FileDigests, hex, writePattern } from './pattern-file.ts'
import type { Checked } from './measure.ts'
import { type Lane, openLane, WAIT_MS } from './streams.ts'

const READ_THREADS = 2
/** What a destination holds before a run. */
export const SPOILED = 0xa5

/** A file with a pattern, and host memory that devices copy from with the same bytes. */
export class SourceBytes {
  readonly bytes: number
  readonly path: string
  /** The host memory, filled by the library's own reads. */
  readonly buffer: Handle
  readonly #digests = new FileDigests()

  /** `stack` frees the host memory. */
  constructor(library: Library, stack: DisposableStack, dir: string, bytes: number) {
    this.bytes = bytes
    this.path = join(dir, `pattern-${bytes}`)
    writePattern(this.path, bytes, 1)
    this.buffer = library.bufferAlloc(bytes, 0)
    stack.defer(() => library.bufferFree(this.buffer))
    const file = library.fileOpen(this.path)
    try {
      const piece = { file, buffer: this.buffer, fileOffset: 0, bufferOffset: 0, bytes }
      const read = library.readStart([piece], READ_THREADS, 0)
      try {
        library.readWait(read, 0, WAIT_MS)
      } finally {
        library.readDestroy(read)
      }
    } finally {
      library.fileClose(file)
    }
  }

  /** Whether a range of device memory differs from a range of the file. */
  differs(library: Library, memory: Handle, offset: number, at: number, bytes: number): boolean {
    const held = hex(library.memorySha256(memory, offset, bytes))
    return held !== this.#digests.sha256(this.path, at, bytes)
  }

  /** Compares the beginning of each memory, the whole of it unless `bytes` says less. */
  compare(library: Library, memories: readonly Handle[], bytes = this.bytes): Checked {
    const wrong = memories.filter((memory) => this.differs(library, memory, 0, 0, bytes))
    return { compared: memories.length, wrong: wrong.length }
  }
}

export interface DeviceBytes extends Lane {
  readonly memory: Handle
}

/** Device memory and a stream of its device. `stack` frees them, the stream first. */
export function allocate(
  library: Library,
  stack: DisposableStack,
  device: number,
  bytes: number,
): DeviceBytes {
  const memory = library.memoryAlloc(device, bytes)
  stack.defer(() => library.memoryFree(memory))
  return { memory, ...openLane(library, stack, device) }
}

/** The members of a group, whose memory broadcasts fill. `stack` destroys the group. */
export function joinGroup(
  library: Library,
  stack: DisposableStack,
  members: readonly DeviceBytes[],
): Handle {
  const group = library.groupCreate(members.length)
  stack.defer(() => library.groupDestroy(group))
  for (const [member, { stream, memory }] of members.entries()) {
    library.groupJoin(group, member, stream, memory)
  }
  return group
}

/** Overwrites device memory, so that a copy that does not come shows. */
export function spoil(library: Library, memory: Handle, bytes: number): void {
  library.memoryFill(memory, 0, bytes, SPOILED)
}
