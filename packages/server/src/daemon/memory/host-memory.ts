import { lstatSync, unlinkSync } from 'node:fs'
import { type TensorRow, buildTable, layoutDigest } from '@ckpt/core/checkpoint/build-table'
import { CkptError, type Failure } from '@ckpt/core/api/errors'
import { type Handle, type Library, openLibrary } from '@ckpt/cuda'
import { Arena, type ArenaBuffer } from './arena.ts'
import { checkFile, LeaseWatch, unmap } from './in-place.ts'
import { endReading, type Part, partBuffers, pinnedBytes } from './part.ts'
import { beginLoad, finishLoad, type Loading, loadPart } from './part-loader.ts'
import { type OpenedFile, PathGuard } from './path-guard.ts'
import { pullPart } from './pull-part.ts'
import { ServedMemory } from './served.ts'
import type {
  AdoptRequest,
  FinishedLoad,
  LoadedPart,
  LoadRequest,
  PartId,
  PullPartRequest,
  RemoteBuffers,
  SharedBuffer,
  StartRequest,
} from './protocol.ts'

/** Everything native that the registry needs; lives in the memory Worker. Methods are those of `MemoryCalls`. */
export class HostMemory {
  readonly #library: Library
  readonly #arena: Arena
  readonly #served: ServedMemory
  readonly #guard: PathGuard
  readonly #watch: LeaseWatch
  readonly #parts = new Map<PartId, Part>()
  /** Loads that stream, until their end is asked for. */
  readonly #finishing = new Map<PartId, Promise<FinishedLoad>>()
  /** Shared buffers that a trainer has and no part yet. */
  readonly #lent = new Map<Handle, ArenaBuffer>()
  /** Why each pull that goes on is to end; null: it is not. */
  readonly #pulls = new Map<PartId, CkptError | null>()
  #closing = false

  constructor(request: StartRequest, broken: (part: PartId, path: string) => void) {
    this.#library = openLibrary(request.library)
    this.#served = new ServedMemory(this.#library, request.networkDevices)
    const { budgetBytes, rankNodes } = request
    this.#arena = new Arena(this.#library, budgetBytes, rankNodes, (buffer) =>
      this.#served.forget(buffer),
    )
    this.#guard = new PathGuard(request.allowedDirs)
    this.#watch = new LeaseWatch(this.#library, this.#parts, broken)
  }

  get pinnedBytes(): number {
    return this.#arena.pinnedBytes
  }

  async load(request: LoadRequest): Promise<LoadedPart> {
    const context = {
      library: this.#library,
      arena: this.#arena,
      guard: this.#guard,
      parts: this.#parts,
      leaseSignal: this.#watch.signal,
      stopped: () => this.#requireOpen(),
    }
    const loading = await (request.stream ? beginLoad : loadPart)(context, request)
    this.#parts.set(request.part, loading.part)
    this.#watch.update()
    const after = () => (request.consume ? unlinkAll(loading.sources) : [])
    if (request.stream) {
      const beginMs = performance.now()
      const finished = finishLoad(context, loading).then(() => {
        return { seconds: (performance.now() - beginMs) / 1000, notes: after() }
      })
      finished.catch(() => {}) // whoever asks for the end is told
      this.#finishing.set(request.part, finished)
    } else loading.notes.push(...after())
    return describe(loading)
  }

  /** See {@link pullPart}. */
  async pull(request: PullPartRequest): Promise<LoadedPart> {
    const { part: id } = request
    this.#pulls.set(id, null)
    try {
      const stopped = () => {
        this.#requireOpen()
        const why = this.#pulls.get(id)
        if (why) throw why
      }
      const context = { library: this.#library, arena: this.#arena, stopped }
      const part = await pullPart(context, request)
      this.#parts.set(id, part)
      return describe({ part, notes: [], reads: [], conflicts: [] })
    } finally {
      this.#pulls.delete(id)
    }
  }

  endPull(part: PartId, failure: Failure): void {
    if (this.#pulls.has(part)) this.#pulls.set(part, CkptError.from(failure))
  }

  finish(part: PartId): Promise<FinishedLoad> {
    const finished = this.#finishing.get(part)
    this.#finishing.delete(part)
    if (finished === undefined) throw new CkptError('internal', `part ${part} is not being read`)
    return finished
  }

  adopt({ part: id, name, buffers }: AdoptRequest): LoadedPart {
    const shared: ArenaBuffer[] = []
    const rows: TensorRow[] = []
    const starts: number[] = []
    let start = 0
    for (const { buffer, tensors } of buffers) {
      const lent = this.#lent.get(buffer)
      if (lent === undefined) throw new CkptError('internal', `buffer ${buffer} is not lent`)
      for (const { offset, ...tensor } of tensors) {
        rows.push({ ...tensor, shape: [...tensor.shape], owner: 0, offset: start + offset })
      }
      shared.push(lent)
      starts.push(start)
      start += lent.bytes
    }
    const table = buildTable(rows)
    const part: Part = {
      table,
      source: {
        starts: Float64Array.from(starts),
        bytes: Float64Array.from(shared.map(({ bytes }) => bytes)),
      },
      mapped: [],
      arena: [],
      shared: { name, buffers: shared },
      origins: table.names.map(() => 'shared memory'),
      reading: null,
    }
    for (const { buffer } of shared) this.#lent.delete(buffer)
    this.#parts.set(id, part)
    return describe({ part, notes: [], reads: [], conflicts: [] })
  }

  async share(name: string, bytes: readonly number[]): Promise<readonly SharedBuffer[]> {
    const shared = await this.#arena.share(name, bytes)
    for (const buffer of shared) this.#lent.set(buffer.buffer, buffer)
    return shared.map(({ buffer, bytes: size }) => ({
      buffer,
      path: this.#library.bufferPath(buffer),
      bytes: size,
    }))
  }

  unshare(buffers: readonly Handle[]): void {
    for (const handle of buffers) {
      const lent = this.#lent.get(handle)
      if (lent === undefined) continue
      this.#lent.delete(handle)
      this.#arena.unshare([lent])
    }
  }

  drop(id: PartId): void {
    const part = this.#parts.get(id)
    if (part === undefined) return
    this.#parts.delete(id)
    this.#watch.update()
    endReading(this.#library, part)
    for (const file of part.mapped) {
      this.#served.forget(file.buffer)
      unmap(this.#library, this.#arena, file)
      this.#library.fileClose(file.file)
    }
    this.#arena.giveBack(part.arena)
    if (part.shared !== null) this.#arena.giveBackShared(part.shared.name, part.shared.buffers)
  }

  trim(name: string): void {
    this.#arena.trim(name)
  }

  /** See {@link ServedMemory.serve}. */
  serve(buffers: readonly Handle[]): RemoteBuffers {
    return this.#served.serve(buffers)
  }

  check(files: readonly Handle[]): void {
    const wanted = new Set(files)
    for (const part of this.#parts.values()) {
      for (const { file, path } of part.mapped) {
        if (wanted.delete(file)) checkFile(this.#library, file, path)
      }
    }
    if (wanted.size > 0) throw new CkptError('checkpoint_invalid', 'the version was dropped')
  }

  /** After `stop`: waits for loads that stream and whose end nobody has asked for yet. */
  async finishAll(): Promise<void> {
    await Promise.allSettled(this.#finishing.values())
  }

  /** Ends loads that run; once they have settled, `close` frees the rest. */
  stop(): void {
    this.#closing = true
  }

  close(): void {
    for (const id of this.#parts.keys()) this.drop(id)
    this.unshare([...this.#lent.keys()])
    this.#arena.trim(null)
    this.#served.close()
    this.#watch.close()
  }

  #requireOpen(): void {
    if (this.#closing) throw new CkptError('shutting_down', 'the daemon is ending')
  }
}

function describe({
  part,
  notes,
  reads,
  conflicts,
}: Pick<Loading, 'part' | 'notes' | 'reads' | 'conflicts'>): LoadedPart {
  const { table, source, mapped } = part
  return {
    table,
    source,
    buffers: partBuffers(part),
    files: Uint32Array.from(mapped.map(({ file }) => file)),
    filePaths: mapped.map(({ path }) => path),
    layoutDigest: layoutDigest(table, [source]),
    bytes: table.bytes.reduce((total, bytes) => total + bytes, 0),
    pinnedBytes: pinnedBytes(part),
    notes,
    reads,
    reading: part.reading,
    conflicts,
  }
}

/** Removes the files that were registered, not what has come to their paths since. Returns notes. */
function unlinkAll(sources: readonly OpenedFile[]): string[] {
  const notes: string[] = []
  for (const { path, realPath, info } of sources) {
    if (info.kind !== 'tmpfs') {
      notes.push(`not removed, it is not in shared memory (tmpfs): ${path}`)
      continue
    }
    try {
      const stat = lstatSync(realPath, { bigint: true })
      if (stat.ino === info.inode && stat.dev === info.device) unlinkSync(realPath)
      else notes.push(`not removed, it was replaced: ${path}`)
    } catch (error) {
      notes.push(`not removed: ${path}: ${error instanceof Error ? error.message : error}`)
    }
  }
  return notes
}
