import { STRUCTS } from './generated.ts'

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

type Fields = Readonly<Record<string, { readonly type: string; readonly offset: number }>>
type Piece<F> = Readonly<Record<Exclude<keyof F, 'reserved'>, number>>

/** Arrays of a struct of unsigned integers; at least one element long, because an empty typed array has no address. */
function encoderOf<F extends Fields>({ bytes, fields }: { bytes: number; fields: F }) {
  const places = Object.entries(fields)
    .filter(([name]) => name !== 'reserved')
    .map(([name, { type, offset }]) => {
      const put = type === 'uint64_t' ? putU64 : putU32
      return { name: name as keyof Piece<F>, put, word: offset / 4 }
    })
  return (pieces: readonly Piece<F>[]): Uint8Array => {
    const words = new Uint32Array(new ArrayBuffer(bytes * Math.max(1, pieces.length)))
    let base = 0
    for (const piece of pieces) {
      for (const { name, put, word } of places) put(words, base + word, piece[name])
      base += bytes / 4
    }
    return new Uint8Array(words.buffer)
  }
}

export const encodeReadPieces = encoderOf(STRUCTS.readPiece)
export const encodeCopyPieces = encoderOf(STRUCTS.copyPiece)
export const encodeH2dPieces = encoderOf(STRUCTS.h2dPiece)
export const encodeGatherPieces = encoderOf(STRUCTS.gatherPiece)
export const encodeP2pPieces = encoderOf(STRUCTS.p2pPiece)
