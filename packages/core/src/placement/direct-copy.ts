/**
 * A device copies row by row. Rows of 192 bytes are the narrowest that were measured; much narrower ones, two bytes in a transposed
 * tensor for instance, are not what a copy is for.
 */
export const NARROW_ROW_BYTES = 64

/**
 * Rows of `width` bytes, `height` of them, from one owner's source space into one allocation of an engine worker. Offsets and
 * pitches are bytes; a row that is alone has pitches of `width`. All of it lies in one source buffer.
 */
export interface DirectCopy {
  readonly owner: number
  readonly source: number
  readonly sourcePitch: number
  readonly allocation: number
  readonly destination: number
  readonly destinationPitch: number
  readonly width: number
  readonly height: number
}
