import type { SourceSpace, TensorTable } from '../checkpoint/table.ts'
import { torchView } from '../safetensors/dtypes.ts'
import { cutAtBuffers, cutLarge, GROUP_BYTES } from './cut-copies.ts'
import { type DirectCopy, NARROW_ROW_BYTES } from './direct-copy.ts'
import { COPY_DIMENSIONS } from './encode-map.ts'
import { copyEnd, type PlacementMap } from './placement-map.ts'
import { type Staging, stageSmall } from './stage-small.ts'

/** A rank plans in the thread that also has to hear an abort. */
const COPIES_MAX = 2 ** 20
/** A few narrow rows do no harm. */
const NARROW_BYTES_MAX = 2 ** 20

/** A map that does not fit the checkpoint: the update goes through the ring, and the reason is told. */
export interface NotDirect {
  readonly reason: string
}

/** How a checkpoint comes to its places in the memory of one engine worker. */
export interface DirectPlan {
  /** In the order of their sources, so that those whose files are read first come first. */
  readonly copies: readonly DirectCopy[]
  /** Index of the first copy of each group, and the number of copies. */
  readonly groups: readonly number[]
  /** To be gathered and copied after them. */
  readonly staging: Staging
  /** Of what other hosts have, in the same order: their bytes are read over the network first. */
  readonly fetched: readonly DirectCopy[]
  /** That are copied, which is less than the checkpoint has where the engine worker holds slices. */
  readonly bytes: number
}

export interface DirectPlanOptions {
  /** Of what is gathered, 0: nothing; absent: what the daemon takes. */
  readonly stagingBytesMax?: number | undefined
  /** Whether another host has an owner's bytes; absent: none does. */
  readonly isFetched?: (owner: number) => boolean
}

/**
 * Plans a direct update of one engine worker. Neighbours on both sides are one copy.
 *
 * @param sources of each owner
 */
export function planDirect(
  map: PlacementMap,
  table: TensorTable,
  sources: readonly SourceSpace[],
  { stagingBytesMax, isFetched = () => false }: DirectPlanOptions = {},
): DirectPlan | NotDirect {
  const all = placeTensors(map, table)
  if ('reason' in all) return all
  const ordered = inOrder(cutLarge(cutAtBuffers(joinNeighbours(all), sources)))
  const fetched = ordered.filter(({ owner }) => isFetched(owner))
  const own = fetched.length === 0 ? ordered : ordered.filter(({ owner }) => !isFetched(owner))
  const { copies, staging } = stageSmall(own, stagingBytesMax)
  const narrow = narrowRows([...copies, ...fetched])
  if (narrow !== null) return narrow
  const bytes = copiedBytes(copies) + staging.bytes + copiedBytes(fetched)
  return { copies, groups: groupsOf(copies), staging, fetched, bytes }
}

function copiedBytes(copies: readonly DirectCopy[]): number {
  return copies.reduce((sum, { width, height }) => sum + width * height, 0)
}

function placeTensors(map: PlacementMap, table: TensorTable): readonly DirectCopy[] | NotDirect {
  const rows = rowsOf(map, table)
  if ('reason' in rows) return rows
  let copyCount = 0
  for (let copy = 0; copy < map.run.length; copy++) copyCount += copiesOf(map, copy)
  if (copyCount > COPIES_MAX) {
    return {
      reason: `the engine's placement map takes ${copyCount} copies, more than ${COPIES_MAX}`,
    }
  }
  const copies: DirectCopy[] = []
  for (let copy = 0; copy < map.run.length; copy++) {
    const row = rows[map.tensor[copy] as number] as number
    if (copyEnd(map, copy, map.source, map.sourceStrides) > (table.bytes[row] as number)) {
      return { reason: `${table.names[row]} is smaller than in the engine's placement map` }
    }
    const start = (table.offsets[row] as number) + (map.source[copy] as number)
    addCopy(copies, map, copy, table.owners[row] as number, start)
  }
  return copies
}

/** Of each tensor of the map its row in the table. Another tensor, type or shape would be loaded otherwise by the engine. */
function rowsOf(map: PlacementMap, table: TensorTable): readonly number[] | NotDirect {
  const rows = new Map(table.names.map((name, row) => [name, row]))
  const known = new Set(map.tensors)
  const missing = table.names.find((name) => !known.has(name))
  if (missing !== undefined) return { reason: `the engine's placement map has no ${missing}` }
  const found: number[] = []
  for (const [tensor, name] of map.tensors.entries()) {
    const row = rows.get(name)
    if (row === undefined) return { reason: `the checkpoint has no ${name}` }
    const view = torchView(table.dtypes[row] as number, table.shapes[row] as readonly number[])
    const theirs = `${map.dtypes[tensor]} [${map.shapes[tensor]}]`
    const ours = view === null ? 'unknown to torch' : `${view.torch} [${view.shape}]`
    if (ours !== theirs) {
      return { reason: `${name} is ${ours}, in the engine's placement map ${theirs}` }
    }
    found.push(row)
  }
  return found
}

function narrowRows(copies: readonly DirectCopy[]): NotDirect | null {
  const narrow = copies.filter(({ width, height }) => height > 1 && width < NARROW_ROW_BYTES)
  const bytes = narrow.reduce((sum, { width, height }) => sum + width * height, 0)
  if (bytes <= NARROW_BYTES_MAX) return null
  return { reason: `${bytes} bytes of it lie in rows of less than ${NARROW_ROW_BYTES} bytes` }
}

/** Index of the first copy of each group, and the number of copies. */
export function groupsOf(copies: readonly DirectCopy[]): number[] {
  const groups: number[] = []
  let bytes = GROUP_BYTES
  for (const [index, { width, height }] of copies.entries()) {
    if (bytes >= GROUP_BYTES) {
      groups.push(index)
      bytes = 0
    }
    bytes += width * height
  }
  return [...groups, copies.length]
}

interface Dimension {
  readonly size: number
  readonly source: number
  readonly destination: number
}

/** The dimension that becomes the rows of a copy, the largest that a pitch can be made of, and the others. */
function dimensionsOf(map: PlacementMap, copy: number) {
  const width = map.run[copy] as number
  const dimensions: Dimension[] = []
  for (let d = 0; d < COPY_DIMENSIONS; d++) {
    const size = map.sizes[d]?.[copy] as number
    const source = map.sourceStrides[d]?.[copy] as number
    const destination = map.destinationStrides[d]?.[copy] as number
    if (size > 1) dimensions.push({ size, source, destination })
  }
  const pitched = dimensions.filter((one) => one.source >= width && one.destination >= width)
  const rows = pitched.reduce<Dimension | null>(
    (best, one) => (best === null || one.size > best.size ? one : best),
    null,
  )
  return { rows, others: dimensions.filter((one) => one !== rows) }
}

/** How many copies of two dimensions a row of the map takes. */
function copiesOf(map: PlacementMap, copy: number): number {
  return dimensionsOf(map, copy).others.reduce((product, { size }) => product * size, 1)
}

/** As copies of two dimensions: one for each index of the dimensions that are not its rows. */
function addCopy(
  copies: DirectCopy[],
  map: PlacementMap,
  copy: number,
  owner: number,
  source: number,
): void {
  const width = map.run[copy] as number
  const { rows, others } = dimensionsOf(map, copy)
  const add = (at: number, to: number, left: readonly Dimension[]): void => {
    const [outer, ...inner] = left
    if (outer !== undefined) {
      for (let i = 0; i < outer.size; i++) {
        add(at + i * outer.source, to + i * outer.destination, inner)
      }
      return
    }
    copies.push({
      owner,
      source: at,
      sourcePitch: rows?.source ?? width,
      allocation: map.allocation[copy] as number,
      destination: to,
      destinationPitch: rows?.destination ?? width,
      width,
      height: rows?.size ?? 1,
    })
  }
  add(source, map.destination[copy] as number, others)
}

function inOrder(copies: readonly DirectCopy[]): readonly DirectCopy[] {
  return copies.toSorted((a, b) => a.owner - b.owner || a.source - b.source)
}

function joinNeighbours(copies: readonly DirectCopy[]): readonly DirectCopy[] {
  const joined: DirectCopy[] = []
  for (const copy of inOrder(copies)) {
    const last = joined.at(-1)
    if (last !== undefined && isNeighbour(last, copy)) {
      const width = last.width + copy.width
      joined[joined.length - 1] = { ...last, width, sourcePitch: width, destinationPitch: width }
    } else joined.push(copy)
  }
  return joined
}

function isNeighbour(before: DirectCopy, after: DirectCopy): boolean {
  return (
    before.height === 1 &&
    after.height === 1 &&
    before.owner === after.owner &&
    before.allocation === after.allocation &&
    before.source + before.width === after.source &&
    before.destination + before.width === after.destination
  )
}
