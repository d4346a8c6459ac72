import { assert } from '../checkpoint/assert.ts'

/** Opcodes of pickle protocol 4, names as in CPython's `pickletools`. */
export const OP = {
  MARK: 0x28,
  EMPTY_TUPLE: 0x29,
  STOP: 0x2e,
  BININT: 0x4a,
  BININT1: 0x4b,
  BININT2: 0x4d,
  NONE: 0x4e,
  REDUCE: 0x52,
  BINUNICODE: 0x58,
  EMPTY_LIST: 0x5d,
  APPEND: 0x61,
  BINBYTES: 0x42,
  SHORT_BINBYTES: 0x43,
  GLOBAL: 0x63,
  APPENDS: 0x65,
  BINGET: 0x68,
  LONG_BINGET: 0x6a,
  BINPUT: 0x71,
  LONG_BINPUT: 0x72,
  SETITEM: 0x73,
  TUPLE: 0x74,
  SETITEMS: 0x75,
  EMPTY_DICT: 0x7d,
  PROTO: 0x80,
  TUPLE1: 0x85,
  TUPLE2: 0x86,
  TUPLE3: 0x87,
  NEWTRUE: 0x88,
  NEWFALSE: 0x89,
  LONG1: 0x8a,
  SHORT_BINUNICODE: 0x8c,
  BINUNICODE8: 0x8d,
  BINBYTES8: 0x8e,
  STACK_GLOBAL: 0x93,
  MEMOIZE: 0x94,
  FRAME: 0x95,
} as const

const PROTOCOL = 4
const MEMO_MAX = 256
const UINT32 = 0x1_0000_0000

/**
 * One pickle under construction: a growing byte array and the memo. A text or global that is used
 * again is written once and fetched from the memo afterwards.
 */
export class PickleStream {
  #bytes: Uint8Array
  #length = 0
  #memoized = 0
  readonly #keys = new Map<string, number>()
  readonly #globals = new Map<string, Map<string, number>>()

  constructor(expectedBytes = 512) {
    this.#bytes = new Uint8Array(expectedBytes)
    this.#bytes[0] = OP.PROTO
    this.#bytes[1] = PROTOCOL
    this.#length = 2
  }

  /** Ends the pickle and gives its bytes. */
  finish(): Uint8Array {
    this.op(OP.STOP)
    return this.#bytes.subarray(0, this.#length)
  }

  op(code: number): void {
    this.#reserve(1)
    this.#bytes[this.#length++] = code
  }

  /** A non-negative safe integer. */
  int(value: number): void {
    assert(Number.isSafeInteger(value) && value >= 0, `${value} is a non-negative safe integer`)
    this.#reserve(10)
    const bytes = this.#bytes
    let at = this.#length
    if (value < 0x100) {
      bytes[at++] = OP.BININT1
      bytes[at++] = value
    } else if (value < 0x1_0000) {
      bytes[at++] = OP.BININT2
      bytes[at++] = value & 0xff
      bytes[at++] = value >>> 8
    } else if (value < 0x8000_0000) {
      bytes[at++] = OP.BININT
      at = putUint32(bytes, at, value)
    } else {
      // 7 bytes hold 2^53 with a clear sign bit
      bytes[at++] = OP.LONG1
      bytes[at++] = 7
      at = putUint32(bytes, at, value % UINT32)
      const high = Math.floor(value / UINT32)
      bytes[at++] = high & 0xff
      bytes[at++] = (high >>> 8) & 0xff
      bytes[at++] = high >>> 16
    }
    this.#length = at
  }

  bool(value: boolean): void {
    this.op(value ? OP.NEWTRUE : OP.NEWFALSE)
  }

  bytes(value: Uint8Array): void {
    assert(value.length < 0x100, 'SHORT_BINBYTES holds 255 bytes')
    this.#reserve(2 + value.length)
    this.#bytes[this.#length++] = OP.SHORT_BINBYTES
    this.#bytes[this.#length++] = value.length
    this.#bytes.set(value, this.#length)
    this.#length += value.length
  }

  text(value: string): void {
    // UTF-8 takes at most 3 bytes for each UTF-16 code unit
    this.#reserve(5 + value.length * 3)
    const short = value.length < 0x100 / 3
    const start = this.#length + (short ? 2 : 5)
    const end = putUtf8(this.#bytes, start, value)
    if (short) {
      this.#bytes[this.#length] = OP.SHORT_BINUNICODE
      this.#bytes[this.#length + 1] = end - start
    } else {
      this.#bytes[this.#length] = OP.BINUNICODE
      putUint32(this.#bytes, this.#length + 1, end - start)
    }
    this.#length = end
  }

  /** A text that this pickle uses again and again, such as a dictionary's key. */
  key(value: string): void {
    const index = this.#keys.get(value)
    if (index !== undefined) return this.#recall(index)
    this.text(value)
    this.#keys.set(value, this.#memoize())
  }

  /** The object `module.name`, such as `torch.bfloat16`. */
  global(module: string, name: string): void {
    const index = this.#globals.get(module)?.get(name)
    if (index !== undefined) return this.#recall(index)
    const line = `${module}\n${name}\n`
    this.op(OP.GLOBAL)
    this.#reserve(line.length * 3)
    this.#length = putUtf8(this.#bytes, this.#length, line)
    const names = this.#globals.get(module) ?? new Map<string, number>()
    this.#globals.set(module, names.set(name, this.#memoize()))
  }

  /** A tuple of non-negative safe integers. */
  intTuple(values: readonly number[]): void {
    const count = values.length
    if (count > 3) this.op(OP.MARK)
    for (let index = 0; index < count; index++) this.int(values[index] as number)
    if (count === 0) this.op(OP.EMPTY_TUPLE)
    else this.op(count > 3 ? OP.TUPLE : OP.TUPLE1 - 1 + count)
  }

  #recall(index: number): void {
    this.#reserve(2)
    this.#bytes[this.#length++] = OP.BINGET
    this.#bytes[this.#length++] = index
  }

  #memoize(): number {
    const index = this.#memoized++
    assert(index < MEMO_MAX, 'BINPUT holds 256 entries')
    this.#reserve(2)
    this.#bytes[this.#length++] = OP.BINPUT
    this.#bytes[this.#length++] = index
    return index
  }

  #reserve(count: number): void {
    const needed = this.#length + count
    if (needed <= this.#bytes.length) return
    const grown = new Uint8Array(Math.max(needed, this.#bytes.length * 2))
    grown.set(this.#bytes)
    this.#bytes = grown
  }
}

function putUint32(bytes: Uint8Array, at: number, value: number): number {
  bytes[at] = value & 0xff
  bytes[at + 1] = (value >>> 8) & 0xff
  bytes[at + 2] = (value >>> 16) & 0xff
  bytes[at + 3] = value >>> 24
  return at + 4
}

/**
 * UTF-8 with lone surrogates kept as three bytes, as CPython's pickle reads and writes them
 * (`surrogatepass`): a TextEncoder would replace them, and the engine would look for another name.
 */
function putUtf8(bytes: Uint8Array, start: number, text: string): number {
  let at = start
  for (let index = 0; index < text.length; index++) {
    const unit = text.charCodeAt(index)
    if (unit < 0x80) {
      bytes[at++] = unit
    } else if (unit < 0x800) {
      bytes[at++] = 0xc0 | (unit >>> 6)
      bytes[at++] = 0x80 | (unit & 0x3f)
    } else {
      const point = text.codePointAt(index) as number
      if (point > 0xffff) {
        index++
        bytes[at++] = 0xf0 | (point >>> 18)
        bytes[at++] = 0x80 | ((point >>> 12) & 0x3f)
      } else {
        bytes[at++] = 0xe0 | (point >>> 12)
      }
      bytes[at++] = 0x80 | ((point >>> 6) & 0x3f)
      bytes[at++] = 0x80 | (point & 0x3f)
    }
  }
  return at
}
