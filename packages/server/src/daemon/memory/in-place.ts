import { CkptError } from '@ckpt/core/api/errors'
import type { Handle, Library } from '@ckpt/cuda'
import type { Arena } from './arena.ts'
import type { MappedFile, Part } from './part.ts'
import type { OpenedFile } from './path-guard.ts'

/** How soon a broken lease is noticed. The library itself gives the lease up at once and guards the mapping. */
const WATCH_INTERVAL_MS = 25

/**
 * Leases and maps a file. Null when it cannot be held in place: then it is to be read, and `notes` says why.
 *
 * @throws CkptError `file_changed` when the file changed since it was opened
 */
export function mapInPlace(
  library: Library,
  arena: Arena,
  source: OpenedFile,
  signal: Handle,
  notes: string[],
): MappedFile | null {
  try {
    library.fileLease(source.file, signal)
  } catch (error) {
    if (!(error instanceof CkptError) || error.code === 'internal') throw error
    notes.push(`lease refused, read into memory: ${source.path}`)
    return null
  }
  checkFile(library, source.file, source.path)
  arena.addMapped(source.info.bytes)
  try {
    const buffer = library.bufferMap(source.file)
    return { file: source.file, buffer, path: source.path, bytes: source.info.bytes }
  } catch (error) {
    arena.removeMapped(source.info.bytes)
    if (!(error instanceof CkptError) || !MAPPING_REFUSED.has(error.code)) throw error
    notes.push(`mapping refused, read into memory: ${source.path}: ${error.message}`)
    return null
  }
}

const MAPPING_REFUSED: ReadonlySet<string> = new Set([
  'not_supported',
  'device_error',
  'file_unreadable',
])

/** Gives the mapping up. The file itself is still open. */
export function unmap(library: Library, arena: Arena, mapped: MappedFile): void {
  library.bufferFree(mapped.buffer)
  arena.removeMapped(mapped.bytes)
}

/** @throws CkptError `file_changed` with the file's path */
export function checkFile(library: Library, file: Handle, path: string): void {
  try {
    library.fileCheck(file)
  } catch (error) {
    if (!(error instanceof CkptError) || error.code !== 'file_changed') throw error
    throw new CkptError('file_changed', `${path}: was changed after it was registered`)
  }
}

/** Watches the leases of all files held in place, and tells once for each part that is lost. */
export class LeaseWatch {
  readonly signal: Handle
  readonly #library: Library
  readonly #parts: ReadonlyMap<number, Part>
  readonly #broken: (part: number, path: string) => void
  readonly #told = new Set<number>()
  #timer: ReturnType<typeof setInterval> | null = null

  constructor(
    library: Library,
    parts: ReadonlyMap<number, Part>,
    broken: (part: number, path: string) => void,
  ) {
    this.#library = library
    this.#parts = parts
    this.#broken = broken
    this.signal = library.signalCreate()
  }

  /** The parts have changed: looks as long as one of them holds files in place. */
  update(): void {
    const needed = [...this.#parts.values()].some(({ mapped }) => mapped.length > 0)
    if (needed === (this.#timer !== null)) return
    if (this.#timer !== null) clearInterval(this.#timer)
    this.#timer = needed ? setInterval(() => this.#look(), WATCH_INTERVAL_MS) : null
  }

  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer)
    this.#library.signalDestroy(this.signal)
  }

  #look(): void {
    try {
      this.#library.signalWait(this.signal, 0)
    } catch {
      return // nothing was raised
    }
    for (const [id, part] of this.#parts) {
      if (this.#told.has(id)) continue
      const lost = part.mapped.find(({ file }) => !this.#isWhole(file))
      if (lost === undefined) continue
      this.#told.add(id)
      this.#broken(id, lost.path)
    }
  }

  #isWhole(file: Handle): boolean {
    try {
      this.#library.fileCheck(file)
      return true
    } catch {
      return false
    }
  }
}
