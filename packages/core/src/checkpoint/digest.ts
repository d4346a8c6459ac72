/**
 * A 128-bit digest of a stream of numbers and strings: MurmurHash3_x86_128 (Austin Appleby, public
 * domain) over 32-bit words. It tells layouts apart and finds disagreement between daemons; it does
 * not withstand an attacker.
 */
export class Digest {
  private h1 = 0
  private h2 = 0
  private h3 = 0
  private h4 = 0
  private k1 = 0
  private k2 = 0
  private k3 = 0
  private wordCount = 0
  private readonly double = new Float64Array(1)
  private readonly halves = new Uint32Array(this.double.buffer)

  /** One 32-bit word. */
  word(value: number): void {
    switch (this.wordCount++ & 3) {
      case 0:
        this.k1 = value
        break
      case 1:
        this.k2 = value
        break
      case 2:
        this.k3 = value
        break
      default:
        this.block(this.k1, this.k2, this.k3, value)
    }
  }

  /** Any number, by the bits of its double. */
  number(value: number): void {
    this.double[0] = value
    this.word(this.halves[0] as number)
    this.word(this.halves[1] as number)
  }

  /** A string with its length, two UTF-16 units a word. */
  string(value: string): void {
    const { length } = value
    this.word(length)
    let i = 0
    for (; i + 1 < length && (this.wordCount & 3) !== 0; i += 2) this.word(pairAt(value, i))
    // whole blocks, which are most of a long name
    for (; i + 7 < length; i += 8) {
      this.block(pairAt(value, i), pairAt(value, i + 2), pairAt(value, i + 4), pairAt(value, i + 6))
      this.wordCount += 4
    }
    for (; i + 1 < length; i += 2) this.word(pairAt(value, i))
    if (i < length) this.word(value.charCodeAt(i))
  }

  /** Numbers with their count. */
  numbers(values: ArrayLike<number>): void {
    this.word(values.length)
    for (let i = 0; i < values.length; i++) this.number(values[i] as number)
  }

  /** Integers of 32 bits with their count. */
  words(values: ArrayLike<number>): void {
    this.word(values.length)
    for (let i = 0; i < values.length; i++) this.word(values[i] as number)
  }

  /** 32 hex digits; nothing may be added afterwards. */
  hex(): string {
    const tail = this.wordCount & 3
    if (tail > 2) this.h3 ^= mixK3(this.k3)
    if (tail > 1) this.h2 ^= mixK2(this.k2)
    if (tail > 0) this.h1 ^= mixK1(this.k1)
    const byteCount = (this.wordCount * 4) | 0
    this.h1 ^= byteCount
    this.h2 ^= byteCount
    this.h3 ^= byteCount
    this.h4 ^= byteCount
    this.spread()
    this.h1 = avalanche(this.h1)
    this.h2 = avalanche(this.h2)
    this.h3 = avalanche(this.h3)
    this.h4 = avalanche(this.h4)
    this.spread()
    return [this.h1, this.h2, this.h3, this.h4]
      .map((word) => (word >>> 0).toString(16).padStart(8, '0'))
      .join('')
  }

  private spread(): void {
    this.h1 = (this.h1 + this.h2 + this.h3 + this.h4) | 0
    this.h2 = (this.h2 + this.h1) | 0
    this.h3 = (this.h3 + this.h1) | 0
    this.h4 = (this.h4 + this.h1) | 0
  }

  private block(k1: number, k2: number, k3: number, k4: number): void {
    this.h1 = (Math.imul(rotate(this.h1 ^ mixK1(k1), 19) + this.h2, 5) + 0x561ccd1b) | 0
    this.h2 = (Math.imul(rotate(this.h2 ^ mixK2(k2), 17) + this.h3, 5) + 0x0bcaa747) | 0
    this.h3 = (Math.imul(rotate(this.h3 ^ mixK3(k3), 15) + this.h4, 5) + 0x96cd1c35) | 0
    this.h4 = (Math.imul(rotate(this.h4 ^ mixK4(k4), 13) + this.h1, 5) + 0x32ac3b17) | 0
  }
}

function pairAt(value: string, i: number): number {
  return value.charCodeAt(i) | (value.charCodeAt(i + 1) << 16)
}

const C1 = 0x239b961b
const C2 = 0xab0e9789 | 0
const C3 = 0x38b34ae5
const C4 = 0xa1e38b93 | 0

function rotate(x: number, bits: number): number {
  return (x << bits) | (x >>> (32 - bits))
}

function mixK1(k: number): number {
  return Math.imul(rotate(Math.imul(k, C1), 15), C2)
}

function mixK2(k: number): number {
  return Math.imul(rotate(Math.imul(k, C2), 16), C3)
}

function mixK3(k: number): number {
  return Math.imul(rotate(Math.imul(k, C3), 17), C4)
}

function mixK4(k: number): number {
  return Math.imul(rotate(Math.imul(k, C4), 18), C1)
}

function avalanche(h: number): number {
  let x = h ^ (h >>> 16)
  x = Math.imul(x, 0x85ebca6b)
  x ^= x >>> 13
  x = Math.imul(x, 0xc2b2ae35)
  return x ^ (x >>> 16)
}
