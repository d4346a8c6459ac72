/**
 * Alignment of every tensor that we place ourselves: more than any item, and what copies like best.
 */
export const TENSOR_ALIGNMENT = 256

/**
 * Places tensors one after another in a linear space, each at a multiple of 256 bytes. A tensor
 * without bytes takes no room.
 *
 * @param bytes of each tensor, in the order in which they will travel
 * @returns the offset of each, and the length of the space (a multiple of 256)
 */
export function arrange(bytes: ArrayLike<number>): { offsets: Float64Array; totalBytes: number } {
  const offsets = new Float64Array(bytes.length)
  let end = 0
  for (let i = 0; i < bytes.length; i++) {
    offsets[i] = end
    end += Math.ceil((bytes[i] as number) / TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
  }
  return { offsets, totalBytes: end }
}
