import { CkptError } from '../api/errors.ts'
import { OP } from './pickle-stream.ts'

/** The most bytes of one pickle: a list of a million tensors has about a hundred. */
const PICKLE_BYTES_MAX = 256 * 2 ** 20
/** The protocol nests a list, a dictionary and a tuple. */
const MARKS_MAX = 16
const UINT32 = 0x1_0000_0000

/** A name that was mentioned, such as `torch.bfloat16`; nothing is imported. */
export class PickleGlobal {
  constructor(readonly name: string) {}
}

export class PickleTuple {
  constructor(readonly items: readonly PickleValue[]) {}
}

/** A call that was written down, such as `torch.Size((2, 3))`; nothing is called. */
export class PickleObject {
  constructor(
    readonly callable: string,
    readonly args: readonly PickleValue[],
  ) {}
}

export type PickleValue =
  | null
  | boolean
  | number
  | string
  | Uint8Array
  | PickleValue[]
  | Map<string, PickleValue>
  | PickleTuple
  | PickleGlobal
  | PickleObject

export interface PickleRules {
  /** Whether the global may be mentioned. */
  readonly allowed: (name: string) => boolean
  /** Whether the global may stand before arguments. */
  readonly callable: (name: string) => boolean
}

/**
 * Runs the few opcodes of pickle protocols 2 to 4 that plain values need (CPython's `pickletools`
 * documents them) and refuses every other. The result is a value: no name is looked up, no code
 * runs.
 *
 * @throws CkptError `engine_protocol`
 */
export function loadPickle(body: Uint8Array, rules: PickleRules): PickleValue {
  if (body.length > PICKLE_BYTES_MAX) throw malformed(`${body.length} bytes are too many`)
  return new Machine(body, rules).run()
}

class Machine {
  readonly #body: Uint8Array
  readonly #view: DataView
  readonly #rules: PickleRules
  readonly #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  #at = 0
  #stack: PickleValue[] = []
  /** Lengths of the stack at the open marks. */
  readonly #marks: number[] = []
  readonly #memo = new Map<number, PickleValue>()

  constructor(body: Uint8Array, rules: PickleRules) {
    this.#body = body
    this.#view = new DataView(body.buffer, body.byteOffset, body.byteLength)
    this.#rules = rules
  }

  run(): PickleValue {
    if (this.#uint(1) !== OP.PROTO) throw malformed('it does not start with PROTO')
    const protocol = this.#uint(1)
    if (protocol < 2 || protocol > 5) throw malformed(`protocol ${protocol} is not 2 to 5`)
    // every opcode takes a byte at least, so the body's length bounds the loop
    for (;;) {
      const op = this.#uint(1)
      if (op === OP.STOP) break
      if (this.#scalar(op) || this.#text(op) || this.#container(op) || this.#memory(op)) continue
      if (!this.#name(op)) throw malformed(`opcode 0x${op.toString(16)} is not allowed`)
    }
    const value = this.#pop()
    if (this.#stack.length > 0 || this.#marks.length > 0) throw malformed('values are left over')
    if (this.#at !== this.#body.length) throw malformed('bytes are left over')
    return value
  }

  #scalar(op: number): boolean {
    switch (op) {
      case OP.NONE:
        return this.#push(null)
      case OP.NEWTRUE:
      case OP.NEWFALSE:
        return this.#push(op === OP.NEWTRUE)
      case OP.BININT1:
        return this.#push(this.#uint(1))
      case OP.BININT2:
        return this.#push(this.#uint(2))
      case OP.BININT:
        return this.#push(this.#uint(4) | 0)
      case OP.LONG1:
        return this.#push(this.#long(this.#uint(1)))
      default:
        return false
    }
  }

  #text(op: number): boolean {
    switch (op) {
      case OP.SHORT_BINUNICODE:
        return this.#push(this.#unicode(this.#uint(1)))
      case OP.BINUNICODE:
        return this.#push(this.#unicode(this.#uint(4)))
      case OP.BINUNICODE8:
        return this.#push(this.#unicode(this.#uint(8)))
      case OP.SHORT_BINBYTES:
        return this.#push(this.#take(this.#uint(1)).slice())
      case OP.BINBYTES:
        return this.#push(this.#take(this.#uint(4)).slice())
      case OP.BINBYTES8:
        return this.#push(this.#take(this.#uint(8)).slice())
      default:
        return false
    }
  }

  #container(op: number): boolean {
    switch (op) {
      case OP.MARK:
        if (this.#marks.length === MARKS_MAX) throw malformed('it is nested too deeply')
        this.#marks.push(this.#stack.length)
        return true
      case OP.EMPTY_TUPLE:
        return this.#push(new PickleTuple([]))
      case OP.TUPLE1:
      case OP.TUPLE2:
      case OP.TUPLE3:
        return this.#push(new PickleTuple(this.#popMany(op - OP.TUPLE1 + 1)))
      case OP.TUPLE:
        return this.#push(new PickleTuple(this.#popMark()))
      case OP.EMPTY_LIST:
        return this.#push([])
      case OP.APPEND:
        return this.#append(this.#popMany(1))
      case OP.APPENDS:
        return this.#append(this.#popMark())
      case OP.EMPTY_DICT:
        return this.#push(new Map())
      case OP.SETITEM:
        return this.#setItems(this.#popMany(2))
      case OP.SETITEMS:
        return this.#setItems(this.#popMark())
      default:
        return false
    }
  }

  #memory(op: number): boolean {
    switch (op) {
      case OP.FRAME:
        // only a hint to read ahead
        this.#uint(8)
        return true
      case OP.MEMOIZE:
        return this.#remember(this.#memo.size)
      case OP.BINPUT:
        return this.#remember(this.#uint(1))
      case OP.LONG_BINPUT:
        return this.#remember(this.#uint(4))
      case OP.BINGET:
        return this.#recall(this.#uint(1))
      case OP.LONG_BINGET:
        return this.#recall(this.#uint(4))
      default:
        return false
    }
  }

  #name(op: number): boolean {
    switch (op) {
      case OP.GLOBAL:
        return this.#global(this.#line(), this.#line())
      case OP.STACK_GLOBAL: {
        const [module, name] = this.#popMany(2)
        if (typeof module !== 'string' || typeof name !== 'string')
          throw malformed('a name is text')
        return this.#global(module, name)
      }
      case OP.REDUCE: {
        const [callable, args] = this.#popMany(2)
        if (!(callable instanceof PickleGlobal) || !(args instanceof PickleTuple)) {
          throw malformed('a call needs a name and a tuple')
        }
        if (!this.#rules.callable(callable.name)) {
          throw malformed(`calling ${callable.name} is not allowed`)
        }
        return this.#push(new PickleObject(callable.name, args.items))
      }
      default:
        return false
    }
  }

  #global(module: string, name: string): boolean {
    const whole = `${module}.${name}`
    if (!this.#rules.allowed(whole))
      throw malformed(`the name ${whole.slice(0, 100)} is not allowed`)
    return this.#push(new PickleGlobal(whole))
  }

  #append(items: PickleValue[]): boolean {
    const list = this.#stack.at(-1)
    if (!Array.isArray(list) || !this.#isOwn()) throw malformed('an item without a list')
    for (const item of items) list.push(item)
    return true
  }

  #setItems(items: PickleValue[]): boolean {
    const dict = this.#stack.at(-1)
    if (!(dict instanceof Map) || !this.#isOwn()) throw malformed('an item without a dictionary')
    if (items.length % 2 !== 0) throw malformed('a key without a value')
    for (let index = 0; index < items.length; index += 2) {
      const key = items[index]
      if (typeof key !== 'string') throw malformed('a key is text')
      dict.set(key, items[index + 1] as PickleValue)
    }
    return true
  }

  /** Whether the top of the stack lies above the innermost open mark. */
  #isOwn(): boolean {
    return this.#stack.length > (this.#marks.at(-1) ?? 0)
  }

  #remember(index: number): boolean {
    const value = this.#stack.at(-1)
    if (value === undefined || !this.#isOwn()) throw malformed('nothing to remember')
    this.#memo.set(index, value)
    return true
  }

  #recall(index: number): boolean {
    const value = this.#memo.get(index)
    if (value === undefined) throw malformed(`nothing was remembered as ${index}`)
    return this.#push(value)
  }

  #push(value: PickleValue): boolean {
    this.#stack.push(value)
    return true
  }

  #pop(): PickleValue {
    return this.#popMany(1)[0] as PickleValue
  }

  #popMany(count: number): PickleValue[] {
    const start = this.#stack.length - count
    if (start < (this.#marks.at(-1) ?? 0)) throw malformed('the stack is empty')
    return this.#stack.splice(start)
  }

  #popMark(): PickleValue[] {
    const start = this.#marks.pop()
    if (start === undefined) throw malformed('no mark is open')
    return this.#stack.splice(start)
  }

  #take(count: number): Uint8Array {
    const end = this.#at + count
    if (end > this.#body.length) throw malformed('it ends too early')
    const bytes = this.#body.subarray(this.#at, end)
    this.#at = end
    return bytes
  }

  /** A little-endian unsigned integer of 1, 2, 4 or 8 bytes. */
  #uint(count: 1 | 2 | 4 | 8): number {
    if (this.#at + count > this.#body.length) throw malformed('it ends too early')
    const at = this.#at
    this.#at += count
    if (count === 1) return this.#body[at] as number
    if (count === 2) return this.#view.getUint16(at, true)
    const low = this.#view.getUint32(at, true)
    if (count === 4) return low
    const value = low + this.#view.getUint32(at + 4, true) * UINT32
    if (!Number.isSafeInteger(value)) throw malformed(`${value} is too large`)
    return value
  }

  /** A two's complement integer of any length that JavaScript can hold. */
  #long(count: number): number {
    let value = 0n
    for (const byte of this.#take(count).toReversed()) value = (value << 8n) | BigInt(byte)
    const number = Number(BigInt.asIntN(count * 8, value))
    if (!Number.isSafeInteger(number)) throw malformed(`${number} is not a safe integer`)
    return number
  }

  #line(): string {
    const end = this.#body.indexOf(0x0a, this.#at)
    if (end < 0) throw malformed('it ends too early')
    const text = this.#unicode(end - this.#at)
    this.#at++
    return text
  }

  #unicode(count: number): string {
    const bytes = this.#take(count)
    try {
      return this.#decoder.decode(bytes)
    } catch {
      return surrogates(bytes)
    }
  }
}

/** UTF-8 that may hold lone surrogates, as CPython's pickle writes them (`surrogatepass`). */
function surrogates(bytes: Uint8Array): string {
  const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  let text = ''
  let start = 0
  const decode = (end: number): string => {
    try {
      return strict.decode(bytes.subarray(start, end))
    } catch {
      throw malformed('a text is not UTF-8')
    }
  }
  for (let at = 0; at + 2 < bytes.length; at++) {
    const [lead, second, third] = [bytes[at], bytes[at + 1] as number, bytes[at + 2] as number]
    if (lead !== 0xed || second < 0xa0 || second > 0xbf || third >> 6 !== 2) continue
    text += decode(at) + String.fromCharCode(0xd000 | ((second & 0x3f) << 6) | (third & 0x3f))
    at += 2
    start = at + 1
  }
  return text + decode(bytes.length)
}

function malformed(reason: string): CkptError {
  return new CkptError('engine_protocol', `a pickle that is not of the protocol: ${reason}`)
}
