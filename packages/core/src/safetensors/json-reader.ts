/** What a reader found wrong; `at` is the byte. The caller adds file and tensor. */
export class JsonError extends Error {
  override readonly name = 'JsonError'
  readonly at: number

  constructor(message: string, at: number) {
    super(message)
    this.at = at
  }
}

const QUOTE = 0x22
const COMMA = 0x2c
const ZERO = 0x30
const NINE = 0x39
const COLON = 0x3a
const OPEN_ARRAY = 0x5b
const BACKSLASH = 0x5c
const CLOSE_ARRAY = 0x5d
const OPEN_OBJECT = 0x7b
const CLOSE_OBJECT = 0x7d

/** serde_json, which safetensors reads headers with, has the same limit. */
const DEPTH_MAX = 128

/** The most bytes of a value that nobody asked for. */
const SKIPPED_BYTES_MAX = 2 ** 20

/**
 * Strings up to this length are looked up before they are decoded: a header repeats a few of them
 * for every tensor.
 */
const SHORT_BYTES_MAX = 16
const SHORT_SLOTS = 64

interface ShortString {
  readonly bytes: Uint8Array
  readonly text: string
}

/**
 * Reads JSON of a known form straight from its bytes, and stops at the first byte that does not
 * fit. `JSON.parse` would hide keys that come twice, and would build a tree out of 100 MB of
 * nonsense before anyone could look at it.
 */
export class JsonReader {
  private at = 0
  private skipEnd = 0
  private readonly short: (ShortString | undefined)[] = []
  private readonly decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

  constructor(private readonly bytes: Uint8Array) {}

  /** Reads an object; `member` must read the value of the key that it is given. */
  object(member: (key: string) => void): void {
    this.expect(OPEN_OBJECT, 'an object')
    if (this.take(CLOSE_OBJECT)) return
    do {
      const key = this.string()
      this.expect(COLON, "':'")
      member(key)
    } while (this.take(COMMA))
    this.expect(CLOSE_OBJECT, "',' or '}'")
  }

  /** Reads an array of at most `countMax` values; `item` must read one. */
  array(countMax: number, item: () => void): void {
    this.expect(OPEN_ARRAY, 'an array')
    if (this.take(CLOSE_ARRAY)) return
    let count = 0
    do {
      if (count++ === countMax) this.fail(`an array of more than ${countMax} values`, this.at)
      item()
    } while (this.take(COMMA))
    this.expect(CLOSE_ARRAY, "',' or ']'")
  }

  /**
   * Reads a non-negative integer. A larger one than 2^53 - 1 is an error, as is a fraction or an
   * exponent.
   */
  integer(): number {
    this.space()
    const { bytes } = this
    const start = this.at
    let value = 0
    while (this.at < bytes.length) {
      const digit = (bytes[this.at] as number) - ZERO
      if (digit < 0 || digit > 9) break
      value = value * 10 + digit
      if (value > Number.MAX_SAFE_INTEGER) this.fail('a number larger than 2^53 - 1', start)
      this.at++
    }
    const digits = this.at - start
    const next = bytes[this.at]
    const fraction = next === 0x2e || next === 0x65 || next === 0x45
    if (digits === 0 || fraction) this.fail('not a non-negative integer', start)
    if (digits > 1 && bytes[start] === ZERO) this.fail('a number with a leading zero', start)
    return value
  }

  string(): string {
    this.expect(QUOTE, 'a string')
    const start = this.at
    const escaped = this.skipString()
    if (!escaped && this.at - 1 - start <= SHORT_BYTES_MAX) return this.shortString(start)
    return this.decode(start, escaped)
  }

  private shortString(start: number): string {
    const { bytes } = this
    const length = this.at - 1 - start
    const slot =
      (length * 31 + (bytes[start] as number) * 7 + (bytes[start + 1] ?? 0)) % SHORT_SLOTS
    const known = this.short[slot]
    if (known !== undefined && known.bytes.length === length) {
      let i = 0
      while (i < length && known.bytes[i] === bytes[start + i]) i++
      if (i === length) return known.text
    }
    const text = this.decode(start, false)
    this.short[slot] = { bytes: bytes.subarray(start, start + length), text }
    return text
  }

  private decode(start: number, escaped: boolean): string {
    const raw = this.bytes.subarray(start, this.at - 1)
    try {
      const text = this.decoder.decode(raw)
      if (!escaped) return text
      const value: unknown = JSON.parse(`"${text}"`)
      if (typeof value === 'string' && value.isWellFormed()) return value
    } catch {
      // reported below, with its place
    }
    return this.fail('a string that is not valid UTF-8 or has a wrong escape', start)
  }

  /** Takes `null` when it comes next. */
  takeNull(): boolean {
    this.space()
    if (!this.literal('null')) return false
    this.at += 4
    return true
  }

  /** Skips one value of any form, up to 1 MiB. */
  skip(): void {
    this.skipEnd = this.at + SKIPPED_BYTES_MAX
    this.skipValue(0)
  }

  /** Nothing but white space may follow. */
  end(): void {
    this.space()
    if (this.at < this.bytes.length) this.fail('more text after the end', this.at)
  }

  private skipValue(depth: number): void {
    if (depth > DEPTH_MAX) this.fail('nested too deeply', this.at)
    if (this.at > this.skipEnd) this.fail('an unknown value of more than 1 MiB', this.at)
    this.space()
    const byte = this.bytes[this.at]
    if (byte === OPEN_OBJECT) this.object(() => this.skipValue(depth + 1))
    else if (byte === OPEN_ARRAY) this.array(SKIPPED_BYTES_MAX, () => this.skipValue(depth + 1))
    else if (byte === QUOTE) this.string()
    else if (byte === 0x2d || (byte !== undefined && byte >= ZERO && byte <= NINE))
      this.skipNumber()
    else {
      const word = ['null', 'true', 'false'].find((literal) => this.literal(literal))
      if (word === undefined) this.fail('not a value', this.at)
      this.at += (word as string).length
    }
  }

  private skipNumber(): void {
    const start = this.at
    // 1000 digits are more than any number has: a limit for what is sliced
    while (this.at - start < 1000 && /[-+.eE0-9]/.test(this.character())) this.at++
    const text = this.decoder.decode(this.bytes.subarray(start, this.at))
    if (!/^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/.test(text)) this.fail('not a number', start)
  }

  /** Moves past the closing quote; tells whether there was an escape. */
  private skipString(): boolean {
    const { bytes } = this
    const start = this.at
    let escaped = false
    let at = start
    for (; at < bytes.length; at++) {
      const byte = bytes[at] as number
      if (byte === QUOTE) {
        this.at = at + 1
        return escaped
      }
      if (byte < 0x20) this.fail('a control character in a string', at)
      if (byte === BACKSLASH) {
        escaped = true
        at++
      }
    }
    return this.fail('a string without an end', start)
  }

  private character(): string {
    const byte = this.bytes[this.at]
    return byte === undefined ? '' : String.fromCharCode(byte)
  }

  private literal(word: string): boolean {
    for (let i = 0; i < word.length; i++) {
      if (this.bytes[this.at + i] !== word.charCodeAt(i)) return false
    }
    return true
  }

  private expect(byte: number, what: string): void {
    if (!this.take(byte)) this.fail(`expected ${what}`, this.at)
  }

  private take(byte: number): boolean {
    this.space()
    if (this.bytes[this.at] !== byte) return false
    this.at++
    return true
  }

  private space(): void {
    for (;;) {
      const byte = this.bytes[this.at]
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return
      this.at++
    }
  }

  private fail(message: string, at: number): never {
    throw new JsonError(message, at)
  }
}
