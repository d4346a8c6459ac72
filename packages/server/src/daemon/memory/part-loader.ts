import { arrange } from '@ckpt/core/checkpoint/arrange'
import { type TensorRow, buildTable } from '@ckpt/core/checkpoint/build-table'
import { CkptError } from '@ckpt/core/api/errors'
import type { HeaderTensor } from '@ckpt/core/safetensors/header'
import { naturalOrder } from '@ckpt/core/checkpoint/natural-order'
import type { SourceSpace } from '@ckpt/core/checkpoint/table'
import type { Handle, Library } from '@ckpt/cuda'
import type { Arena, Taking } from './arena.ts'
import { checkFile, mapInPlace, unmap } from './in-place.ts'
import { endReading, type MappedFile, type Part, placeInPart, rowsByName } from './part.ts'
import type { OpenedFile, PathGuard } from './path-guard.ts'
import type { LoadedPart, LoadRequest, PartId } from './protocol.ts'
import { decideRead, DIRECT_REFUSED, groupReads, type ReadDecision } from './read-decision.ts'
import { finishRead, type Placement, startRead, type TensorRead } from './read-tensors.ts'
import { type TensorPlace, tensorConflict } from './same-tensor.ts'
import { openSourceFiles, type SourceFile } from './source-files.ts'
import { turn } from './turn.ts'

export interface LoaderContext {
  readonly library: Library
  readonly arena: Arena
  readonly guard: PathGuard
  readonly parts: ReadonlyMap<PartId, Part>
  /** Raised when the lease of a file breaks. */
  readonly leaseSignal: Handle
  /** Throws when the Worker is to end. */
  readonly stopped: () => void
}

/** A part whose place in host memory is known, and whose bytes are there or on their way. */
export interface Loading {
  readonly part: Part
  readonly conflicts: LoadedPart['conflicts']
  readonly notes: string[]
  readonly reads: LoadedPart['reads']
  /** The files that are read or mapped, for `consume`. */
  readonly sources: readonly OpenedFile[]
  /** Every open file, also those that no byte is wanted of. */
  readonly opened: readonly OpenedFile[]
  readonly taking: Taking
  readonly read: TensorRead | null
}

interface FileTensor {
  readonly tensor: HeaderTensor
  readonly source: SourceFile
}

/** For a rank's loop and its engine, which share the cores with the reading threads. */
const SENDING_CORES = 2

/** Mappings start at page boundaries, so that offsets keep the memory's alignment. */
const MAPPING_ALIGNMENT = 4096

/**
 * Brings the tensors of files into host memory: in place where it is asked for and possible, else into the arena in natural
 * order. What fails leaves nothing behind.
 */
export async function loadPart(context: LoaderContext, request: LoadRequest): Promise<Loading> {
  const { library, arena } = context
  const loading = await beginLoad(context, request)
  const { part, taking } = loading
  try {
    await finishLoad(context, loading).finally(() => endReading(library, part))
    return { ...loading, part: { ...part, reading: null } }
  } catch (error) {
    arena.undo(taking)
    for (const file of part.mapped) {
      unmap(library, arena, file)
      library.fileClose(file.file)
    }
    throw error
  }
}

/** Takes memory and starts to read into it; {@link finishLoad} must follow. What fails leaves nothing behind. */
export async function beginLoad(context: LoaderContext, request: LoadRequest): Promise<Loading> {
  const { library, arena } = context
  const opened: OpenedFile[] = []
  const mapped: MappedFile[] = []
  let taking: Taking | null = null
  let read: TensorRead | null = null
  try {
    const sources = await openSourceFiles(library, context.guard, request.files, opened)
    const tensors = await mergeFiles(library, sources)
    const conflicts = await peerConflicts(context, tensors, request)
    const [conflict] = conflicts
    if (conflict !== undefined && request.refuseConflicts) throw CkptError.from(conflict.failure)
    const notes: string[] = []
    arena.expect(expectedBytes(tensors, request.inPlace))
    if (request.inPlace) {
      for (const source of wantedSources(tensors)) {
        context.stopped()
        const file = mapInPlace(library, arena, source, context.leaseSignal, notes)
        if (file !== null) mapped.push(file)
      }
    }
    const reads = await decideReads(context, tensors, mapped)
    const layout = layOut(tensors, mapped)
    taking = await arena.take(layout.arenaBytes)
    context.stopped()
    read = startRead(library, taking.buffers, layout.placements, request.stream ? SENDING_CORES : 0)
    const part: Part = {
      table: buildTable(layout.rows),
      source: sourceSpace(layout.starts, mapped, layout.arenaStart, taking),
      mapped,
      arena: taking.buffers,
      shared: null,
      origins: tensors.map(({ source }) => label(source, request.owner)),
      reading: read && readingOf(read, layout.arenaStart),
    }
    return { part, conflicts, notes, reads, sources, opened, taking, read }
  } catch (error) {
    if (read !== null) library.readDestroy(read.read)
    if (taking !== null) arena.undo(taking)
    for (const file of mapped) unmap(library, arena, file)
    for (const { file } of opened) library.fileClose(file)
    throw error
  }
}

function readingOf({ read, pieces, pieceStarts, startedMs }: TensorRead, arenaStart: number) {
  return {
    read,
    pieceStarts: pieceStarts.map((start) => arenaStart + start),
    bytes: pieces.reduce((total, { bytes }) => total + bytes, 0),
    startedMs,
  }
}

/**
 * Waits until every byte is in host memory and makes sure that the files are still what they were. Closes those that are not
 * held in place. When it throws the part is still to be dropped.
 */
export async function finishLoad(context: LoaderContext, loading: Loading): Promise<void> {
  const { library, stopped } = context
  const { part, sources, opened, read } = loading
  try {
    if (read !== null) await finishRead(library, read, stopped)
    for (const source of sources) checkFile(library, source.file, source.path)
  } finally {
    const held = new Set(part.mapped.map(({ file }) => file))
    for (const { file } of opened) if (!held.has(file)) library.fileClose(file)
  }
}

/** One place for each name, in natural order. @throws CkptError `tensor_conflict` */
async function mergeFiles(
  library: Library,
  sources: readonly SourceFile[],
): Promise<readonly FileTensor[]> {
  const merged = new Map<string, FileTensor>()
  for (const source of sources) {
    for (const tensor of source.tensors) {
      const first = merged.get(tensor.name)
      if (first === undefined) {
        merged.set(tensor.name, { tensor, source })
        continue
      }
      const conflict = await tensorConflict(
        tensor.name,
        placeInFile(library, first),
        placeInFile(library, { tensor, source }),
      )
      if (conflict !== null) throw conflict
    }
  }
  const tensors = [...merged.values()]
  const order = naturalOrder(tensors.map(({ tensor }) => tensor.name))
  return Array.from(order, (index) => tensors[index]!)
}

function placeInFile(library: Library, { tensor, source }: FileTensor): TensorPlace {
  return {
    label: source.path,
    dtype: tensor.dtype,
    shape: tensor.shape,
    bytes: tensor.bytes,
    contiguous: (offset) => tensor.bytes - offset,
    sha256: (offset, bytes) => library.fileSha256(source.file, tensor.begin + offset, bytes),
  }
}

function label({ path }: OpenedFile, owner: number | null): string {
  return owner === null ? path : `${path} (rank ${owner})`
}

/** Tensors that another owner of the checkpoint holds too, with other contents. */
async function peerConflicts(
  { library, parts }: LoaderContext,
  tensors: readonly FileTensor[],
  { owner, peers }: LoadRequest,
): Promise<LoadedPart['conflicts']> {
  const conflicts: { peer: PartId; failure: LoadedPart['conflicts'][number]['failure'] }[] = []
  for (const peer of peers) {
    const part = parts.get(peer)
    if (part === undefined) continue
    const rows = rowsByName(part.table)
    for (const fileTensor of tensors) {
      const { name } = fileTensor.tensor
      const row = rows.get(name)
      if (row === undefined) continue
      const conflict = await tensorConflict(name, placeInPart(library, part, row), {
        ...placeInFile(library, fileTensor),
        label: label(fileTensor.source, owner),
      })
      if (conflict === null) continue
      conflicts.push({ peer, failure: conflict.failure })
      break
    }
  }
  return conflicts
}

/** Files of which at least one byte is wanted: the same tensors of another file may have made one superfluous. */
function wantedSources(tensors: readonly FileTensor[]): ReadonlySet<SourceFile> {
  return new Set(tensors.filter(({ tensor }) => tensor.bytes > 0).map(({ source }) => source))
}

/** How each file is read, decided before anything is: a file that is being read is in the page cache. */
async function decideReads(
  { library, stopped }: LoaderContext,
  tensors: readonly FileTensor[],
  mapped: readonly MappedFile[],
): Promise<LoadedPart['reads']> {
  const wantedBytes = new Map<SourceFile, number>()
  for (const { tensor, source } of tensors) {
    if (tensor.bytes === 0) continue
    wantedBytes.set(source, (wantedBytes.get(source) ?? 0) + tensor.bytes)
  }
  const inPlace = new Set(mapped.map(({ file }) => file))
  const decided: (ReadDecision & { bytes: number })[] = []
  for (const [{ file, info }, bytes] of wantedBytes) {
    const question = { ...library.fileLocate(file), bytes: info.bytes, mapped: inPlace.has(file) }
    const decision = decideRead(question)
    const refused = decision.how === 'direct' && !library.fileDirect(file)
    decided.push({ ...(refused ? DIRECT_REFUSED : decision), bytes })
    await turn()
    stopped()
  }
  return groupReads(decided)
}

function expectedBytes(tensors: readonly FileTensor[], inPlace: boolean): number {
  if (!inPlace) return arrange(tensors.map(({ tensor }) => tensor.bytes)).totalBytes
  return [...wantedSources(tensors)].reduce((total, { info }) => total + info.bytes, 0)
}

/** Where every tensor is in the source space: mapped files first, then the arena. */
function layOut(tensors: readonly FileTensor[], mapped: readonly MappedFile[]) {
  const starts: number[] = []
  let arenaStart = 0
  for (const { bytes } of mapped) {
    starts.push(arenaStart)
    arenaStart += Math.ceil(bytes / MAPPING_ALIGNMENT) * MAPPING_ALIGNMENT
  }
  const startOfFile = new Map(mapped.map(({ file }, index) => [file, starts[index]!]))
  const toRead = tensors.filter(({ source }) => !startOfFile.has(source.file))
  const { offsets, totalBytes } = arrange(toRead.map(({ tensor }) => tensor.bytes))
  const placements: Placement[] = []
  const rows: TensorRow[] = []
  for (const { tensor, source } of tensors) {
    const { name, dtype, shape, bytes, begin } = tensor
    const start = startOfFile.get(source.file)
    let offset = 0
    if (start !== undefined) offset = start + begin
    else {
      const spaceOffset = offsets[placements.length]!
      placements.push({ source, fileOffset: begin, spaceOffset, bytes })
      offset = arenaStart + spaceOffset
    }
    rows.push({ name, dtype, shape, bytes, owner: 0, offset })
  }
  return { rows, placements, starts, arenaStart, arenaBytes: totalBytes }
}

/** Where mapped files, which begin at `starts`, and what was taken for the rest lie. */
export function sourceSpace(
  starts: readonly number[],
  mapped: readonly MappedFile[],
  arenaStart: number,
  taking: Taking,
): SourceSpace {
  const allStarts = [...starts]
  let next = arenaStart
  for (const { bytes } of taking.buffers) {
    allStarts.push(next)
    next += bytes
  }
  const bytes = [...mapped, ...taking.buffers].map((buffer) => buffer.bytes)
  const space = { starts: Float64Array.from(allStarts), bytes: Float64Array.from(bytes) }
  const nodes = [...mapped.map(() => -1), ...taking.buffers.map(({ node }) => node)]
  return nodes.every((node) => node < 0) ? space : { ...space, nodes: Int32Array.from(nodes) }
}
