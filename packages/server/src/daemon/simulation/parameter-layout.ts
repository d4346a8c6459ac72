import { COPY_DIMENSIONS, encodePlacementMap, type MapCopy } from '@ckpt/core'
import type { DirectCopy } from '@ckpt/core/placement/direct-copy'
import { torchView } from '@ckpt/core/safetensors/dtypes'
import { type ExpectedTensor, U8 } from './checkpoint.ts'
import type { Random } from './random.ts'

/** Rows of a tensor, `source` in that, and where an engine's worker has them. */
export interface Piece extends Omit<DirectCopy, 'owner'> {
  readonly name: string
}

export interface ParameterLayout {
  readonly pieces: readonly Piece[]
  readonly allocationBytes: readonly number[]
  readonly map: Uint8Array
  /** Of the map. */
  readonly digest: string
}

/** Which part of every tensor a worker has: that of one of so many. */
export interface Shard {
  readonly of: number
  readonly index: number
}

const ALLOCATIONS_MAX = 4
const GAP_BYTES = 512
/** What is narrower a daemon does not copy as rows. */
const ROW_BYTES_LEAST = 64
const ROWS_MAX = 8

/** Lays tensors out as an engine might: some one after another, some with gaps, some with every other row elsewhere. */
export function layOut(
  tensors: ReadonlyMap<string, ExpectedTensor>,
  { of, index }: Shard,
  random: Random,
): ParameterLayout {
  const ends: number[] = Array(random.integer(1, ALLOCATIONS_MAX)).fill(0)
  const pieces: Piece[] = []
  let allocation = 0
  for (const [name, { bytes }] of tensors) {
    if (random.chance(0.3)) allocation = random.integer(0, ends.length - 1)
    const source = Math.floor((bytes * index) / of)
    const own = Math.floor((bytes * (index + 1)) / of) - source
    let end = ends[allocation] as number
    if (random.chance(0.3)) end += GAP_BYTES
    const rows = random.integer(2, ROWS_MAX)
    const inRows = random.chance(0.3) && own >= 2 * rows * ROW_BYTES_LEAST
    const placed = inRows
      ? everyOther(name, source, own, rows, allocation, end)
      : [flat(name, source, own, allocation, end)]
    pieces.push(...placed.filter(({ width }) => width > 0))
    ends[allocation] = end + own
  }
  // no allocation is empty
  const allocationBytes = ends.map((end) => Math.max(end, 1))
  const map = encode(tensors, pieces, allocationBytes)
  const digest = new Bun.CryptoHasher('sha256').update(map).digest('hex')
  return { pieces, allocationBytes, map, digest }
}

function flat(
  name: string,
  source: number,
  width: number,
  allocation: number,
  destination: number,
): Piece {
  const pitches = { sourcePitch: width, destinationPitch: width }
  return { name, source, ...pitches, allocation, destination, width, height: 1 }
}

/** First the even rows, then the odd ones, then what is left. */
function everyOther(
  name: string,
  source: number,
  bytes: number,
  rows: number,
  allocation: number,
  destination: number,
): Piece[] {
  const width = Math.floor(bytes / (2 * rows))
  const half = rows * width
  const pitches = { sourcePitch: 2 * width, destinationPitch: width }
  const [even, odd] = [0, 1].map((at) => ({
    name,
    source: source + at * width,
    ...pitches,
    allocation,
    destination: destination + at * half,
    width,
    height: rows,
  })) as [Piece, Piece]
  const rest = bytes - 2 * half
  return [even, odd, flat(name, source + 2 * half, rest, allocation, destination + 2 * half)]
}

function encode(
  tensors: ReadonlyMap<string, ExpectedTensor>,
  pieces: readonly Piece[],
  allocationBytes: readonly number[],
): Uint8Array {
  const names = [...tensors.keys()]
  const numbers = new Map(names.map((name, tensor) => [name, tensor]))
  const views = [...tensors].map(([name, { bytes }]) => {
    const { torch, shape } = torchView(U8, [bytes]) as { torch: string; shape: readonly number[] }
    return { name, dtype: torch, shape }
  })
  const ones = Array(COPY_DIMENSIONS - 1).fill(1)
  const zeros = Array(COPY_DIMENSIONS - 1).fill(0)
  const copies = pieces.map((piece): MapCopy => {
    const { height, width, sourcePitch, destinationPitch } = piece
    const several = height > 1
    return {
      tensor: numbers.get(piece.name) as number,
      source: piece.source,
      allocation: piece.allocation,
      destination: piece.destination,
      run: width,
      sizes: [...ones, height],
      sourceStrides: [...zeros, several ? sourcePitch : 0],
      destinationStrides: [...zeros, several ? destinationPitch : 0],
    }
  })
  return encodePlacementMap(views, allocationBytes, copies)
}
