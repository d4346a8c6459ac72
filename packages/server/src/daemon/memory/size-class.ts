export const MIB = 2 ** 20
/** Buffers are multiples of the huge page. */
export const GRANULE_BYTES = 2 * MIB
/** The largest buffer: copies of this size run at full speed, and taking one blocks the memory Worker for some 0.1 s. */
export const BUFFER_BYTES_MAX = 1024 * MIB
/** Classes between two powers of two: at most an eighth of a buffer is unused. */
const CLASSES_PER_DOUBLING = 8

/** `bytes` rounded up to whole granules. */
export function roundToGranule(bytes: number): number {
  return Math.ceil(bytes / GRANULE_BYTES) * GRANULE_BYTES
}

/**
 * The size class of a buffer of `bytes` (1 to {@link BUFFER_BYTES_MAX}): eight classes a doubling, in whole granules, so that
 * versions of nearly the same size use each other's memory.
 */
export function sizeClass(bytes: number): number {
  const granules = Math.ceil(bytes / GRANULE_BYTES)
  if (granules <= CLASSES_PER_DOUBLING) return granules * GRANULE_BYTES
  const step = 2 ** (Math.ceil(Math.log2(granules)) - 1) / CLASSES_PER_DOUBLING
  return Math.ceil(granules / step) * step * GRANULE_BYTES
}
