import { type DirectCopy, NARROW_ROW_BYTES } from './direct-copy.ts'

/** Copies of this size, each a call of its own, reached 11 of 54 GB/s on an H200; smaller ones do worse. */
const SMALL_BYTES_MAX = 64 * 2 ** 10
/** Of one piece whose rows are narrow. */
const NARROW_ROWS_MAX = 64
/** Of all that is gathered: it is pinned host memory of its own. */
const STAGING_BYTES_MAX = 64 * 2 ** 20

/** `height` rows of `width` bytes out of an owner's source space, one after another into the staging memory. */
export interface StagedPiece {
  readonly owner: number
  readonly source: number
  readonly sourcePitch: number
  /** In the staging memory. */
  readonly offset: number
  readonly width: number
  readonly height: number
}

/** What was gathered, to the device: `bytes` of the staging memory from `offset` on. */
export interface StagedCopy {
  readonly offset: number
  readonly allocation: number
  readonly destination: number
  readonly bytes: number
}

/** Small tensors whose places are neighbours: gathered in pinned memory, they are one copy. */
export interface Staging {
  readonly bytes: number
  readonly pieces: readonly StagedPiece[]
  readonly copies: readonly StagedCopy[]
}

/**
 * Takes out of `copies` what is better gathered first. To issue any copy takes some microseconds, however few bytes it has, and a
 * mixture of experts has thousands of scales of 384 bytes.
 *
 * @param stagingBytesMax 0: nothing is gathered
 */
export function stageSmall(
  copies: readonly DirectCopy[],
  stagingBytesMax = STAGING_BYTES_MAX,
): {
  readonly copies: readonly DirectCopy[]
  readonly staging: Staging
} {
  const small = copies
    .filter((copy) => isStaged(copy))
    .sort((a, b) => a.allocation - b.allocation || a.destination - b.destination)
  const staged = new Set<DirectCopy>()
  const pieces: StagedPiece[] = []
  const gathered: StagedCopy[] = []
  let bytes = 0
  for (let begin = 0; begin < small.length; ) {
    const end = neighboursEnd(small, begin)
    const runBytes = endOf(small[end - 1]!) - small[begin]!.destination
    if (end - begin > 1 && bytes + runBytes <= stagingBytesMax) {
      const { allocation, destination } = small[begin]!
      gathered.push({ offset: bytes, allocation, destination, bytes: runBytes })
      for (const copy of small.slice(begin, end)) {
        const { owner, source, sourcePitch, width, height } = copy
        staged.add(copy)
        pieces.push({ owner, source, sourcePitch, offset: bytes, width, height })
        bytes += width * height
      }
    }
    begin = end
  }
  const rest = copies.filter((copy) => !staged.has(copy))
  return { copies: rest, staging: { bytes, pieces, copies: gathered } }
}

/** Its rows lie one after another in the engine's memory. */
function isStaged({ width, height, destinationPitch }: DirectCopy): boolean {
  if (width * height > SMALL_BYTES_MAX) return false
  if (height === 1) return true
  // many rows of a few bytes take the processor too long
  const fast = width >= NARROW_ROW_BYTES || height <= NARROW_ROWS_MAX
  return destinationPitch === width && fast
}

function endOf({ destination, width, height }: DirectCopy): number {
  return destination + width * height
}

/** Behind the last of the copies from `begin` on that follow each other without a gap. */
function neighboursEnd(small: readonly DirectCopy[], begin: number): number {
  let end = begin + 1
  while (end < small.length) {
    const before = small[end - 1]!
    const after = small[end]!
    if (before.allocation !== after.allocation || endOf(before) !== after.destination) break
    end++
  }
  return end
}
