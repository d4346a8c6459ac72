/**
 * The tensors of one version of a checkpoint as columns; row i is tensor i of the global order
 * (natural order of the names). Every number is a safe integer.
 */
export interface TensorTable {
  readonly names: readonly string[]
  /** Index into DTYPES of `safetensors/dtypes.ts`. */
  readonly dtypes: Uint8Array
  readonly shapes: readonly (readonly number[])[]
  /** Bytes of the tensor; 0 for a tensor without elements. */
  readonly bytes: Float64Array
  /** Index of the owner (a daemon, or a rank with rank sockets) whose memory holds the tensor. */
  readonly owners: Uint32Array
  /**
   * Byte offset in the owner's source space: its source buffers one after another (see {@link
   * SourceSpace}).
   */
  readonly offsets: Float64Array
}

/**
 * The source buffers of one owner as one linear byte space. Buffer k covers `[starts[k], starts[k]
 * + bytes[k])`; starts ascend and need not be adjacent (a gap is never part of a tensor). A tensor
 * may cross from one buffer into the next when they are adjacent; a copy may not, because each
 * buffer is a registration of its own.
 */
export interface SourceSpace {
  readonly starts: Float64Array
  readonly bytes: Float64Array
  /** NUMA node of each buffer, -1: unknown. Absent: of all. No part of a layout or its digest. */
  readonly nodes?: Int32Array
}
