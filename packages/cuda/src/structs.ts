import { STRUCTS } from './generated.ts'
import type { CopyPiece, GatherPiece, H2dPiece, ReadPiece } from './types.ts'

type Structs = typeof STRUCTS

/** Reads the fields of one struct that a native function has written. */
export class StructView<K extends keyof Structs> {
  readonly bytes: Uint8Array
  readonly #view: DataView
  readonly #fields: Record<string, { type: string; offset: number; count?: number }>

  constructor(struct: K) {
    this.bytes = new Uint8Array(new ArrayBuffer(STRUCTS[struct].bytes))
    this.#view = new DataView(this.bytes.buffer)
    this.#fields = STRUCTS[struct].fields
  }

  #field(name: string): { type: string; offset: number; count?: number } {
    const field = this.#fields[name]
    if (field === undefined) throw new Error(`no field ${name}`)
    return field
  }

  bigint(name: keyof Structs[K]['fields'] & string): bigint {
    const { type, offset } = this.#field(name)
    if (type === 'int64_t') return this.#view.getBigInt64(offset, true)
    return this.#view.getBigUint64(offset, true)
  }

  /** A number; 64-bit fields must hold a safe integer. */
  number(name: keyof Structs[K]['fields'] & string): number {
    const { type, offset } = this.#field(name)
    if (type === 'int32_t') return this.#view.getInt32(offset, true)
    if (type === 'uint32_t') return this.#view.getUint32(offset, true)
    return safeNumber(this.bigint(name))
  }

  /** A NUL-terminated text. */
  text(name: keyof Structs[K]['fields'] & string): string {
    const { offset, count } = this.#field(name)
    return cText(this.bytes.subarray(offset, offset + (count ?? 1)))
  }

  set(name: keyof Structs[K]['fields'] & string, value: number): void {
    const { type, offset } = this.#field(name)
    if (type === 'uint32_t') this.#view.setUint32(offset, value, true)
    else this.#view.setBigUint64(offset, BigInt(value), true)
  }
}

const decoder = new TextDecoder()
const encoder = new TextEncoder()

/** The text before the first NUL. */
export function cText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0)
  return decoder.decode(end === -1 ? bytes : bytes.subarray(0, end))
}

/** UTF-8 with a NUL after it. A NUL inside would cut the text silently, so it is refused. */
export function cString(text: string): Uint8Array {
  if (text.includes('\0')) throw new RangeError('a text for the native library contains NUL')
  return encoder.encode(`${text}\0`)
}

export function safeNumber(value: bigint): number {
  const number = Number(value)
  if (!Number.isSafeInteger(number)) throw new RangeError(`${value} is not a safe integer`)
  return number
}

const TWO_32 = 2 ** 32

/** Writes a safe integer as two words: faster than BigInt, and a list may have thousands of pieces. */
function putU64(words: Uint32Array, index: number, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new RangeError(`${value} is not an unsigned safe integer`)
  }
  words[index] = value % TWO_32
  words[index + 1] = Math.floor(value / TWO_32)
}

function putU32(words: Uint32Array, index: number, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0 || value >= TWO_32) {
    throw new RangeError(`${value} is not an unsigned integer of 32 bits`)
  }
  words[index] = value
}

/** `ckpt_read_piece[]`; at least one element long, because an empty typed array has no address. */
export function encodeReadPieces(pieces: readonly ReadPiece[]): Uint8Array {
  const { bytes, fields } = STRUCTS.readPiece
  const words = new Uint32Array(new ArrayBuffer(bytes * Math.max(1, pieces.length)))
  let base = 0
  for (const piece of pieces) {
    words[base + fields.file.offset / 4] = piece.file
    words[base + fields.buffer.offset / 4] = piece.buffer
    putU64(words, base + fields.fileOffset.offset / 4, piece.fileOffset)
    putU64(words, base + fields.bufferOffset.offset / 4, piece.bufferOffset)
    putU64(words, base + fields.bytes.offset / 4, piece.bytes)
    base += bytes / 4
  }
  return new Uint8Array(words.buffer)
}

/** `ckpt_copy_piece[]`; at least one element long. */
export function encodeCopyPieces(pieces: readonly CopyPiece[]): Uint8Array {
  const { bytes, fields } = STRUCTS.copyPiece
  const words = new Uint32Array(new ArrayBuffer(bytes * Math.max(1, pieces.length)))
  let base = 0
  for (const piece of pieces) {
    putU64(words, base + fields.dstOffset.offset / 4, piece.dstOffset)
    putU64(words, base + fields.srcOffset.offset / 4, piece.srcOffset)
    putU64(words, base + fields.bytes.offset / 4, piece.bytes)
    base += bytes / 4
  }
  return new Uint8Array(words.buffer)
}

/** `ckpt_h2d_piece[]`; at least one element long. */
export function encodeH2dPieces(pieces: readonly H2dPiece[]): Uint8Array {
  const { bytes, fields } = STRUCTS.h2dPiece
  const words = new Uint32Array(new ArrayBuffer(bytes * Math.max(1, pieces.length)))
  let base = 0
  for (const piece of pieces) {
    putU32(words, base + fields.memory.offset / 4, piece.memory)
    putU32(words, base + fields.buffer.offset / 4, piece.buffer)
    putU64(words, base + fields.memoryOffset.offset / 4, piece.memoryOffset)
    putU64(words, base + fields.bufferOffset.offset / 4, piece.bufferOffset)
    putU64(words, base + fields.memoryPitch.offset / 4, piece.memoryPitch)
    putU64(words, base + fields.bufferPitch.offset / 4, piece.bufferPitch)
    putU64(words, base + fields.width.offset / 4, piece.width)
    putU64(words, base + fields.height.offset / 4, piece.height)
    base += bytes / 4
  }
  return new Uint8Array(words.buffer)
}

/** `ckpt_gather_piece[]`; at least one element long. */
export function encodeGatherPieces(pieces: readonly GatherPiece[]): Uint8Array {
  const { bytes, fields } = STRUCTS.gatherPiece
  const words = new Uint32Array(new ArrayBuffer(bytes * Math.max(1, pieces.length)))
  let base = 0
  for (const piece of pieces) {
    putU32(words, base + fields.srcBuffer.offset / 4, piece.srcBuffer)
    putU64(words, base + fields.srcOffset.offset / 4, piece.srcOffset)
    putU64(words, base + fields.dstOffset.offset / 4, piece.dstOffset)
    putU64(words, base + fields.srcPitch.offset / 4, piece.srcPitch)
    putU64(words, base + fields.dstPitch.offset / 4, piece.dstPitch)
    putU64(words, base + fields.width.offset / 4, piece.width)
    putU64(words, base + fields.height.offset / 4, piece.height)
    base += bytes / 4
  }
  return new Uint8Array(words.buffer)
}
