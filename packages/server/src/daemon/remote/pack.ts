import { CkptError } from '@ckpt/core'

/** What travels between daemons: JSON, and the bytes of typed arrays beside it. */
export interface Packed {
  readonly body: unknown
  readonly parts: readonly Uint8Array[]
}

const ARRAYS = { Uint8Array, Uint32Array, Int32Array, Float64Array } as const
type ArrayName = keyof typeof ARRAYS
type Numbers = InstanceType<(typeof ARRAYS)[ArrayName]>

/** In place of a typed array, with its name and the index of its part; no other object has this key. */
const MARK = '$array'
/** Deeper values are no message. */
const DEPTH_MAX = 32

/**
 * A value of plain objects, arrays, numbers, texts, booleans, null and typed arrays as a message. Fields that are undefined are left
 * out.
 *
 * @throws TypeError for anything else
 */
export function pack(value: unknown): Packed {
  const parts: Uint8Array[] = []
  return { body: packed(value, parts, 0), parts }
}

function packed(value: unknown, parts: Uint8Array[], depth: number): unknown {
  if (depth > DEPTH_MAX) throw new TypeError('a message is nested too deeply')
  if (typeof value === 'string' || typeof value === 'boolean' || value === null) return value
  if (typeof value === 'number' && Number.isFinite(value)) return value
  if (typeof value !== 'object') throw new TypeError(`a message cannot have a ${typeof value}`)
  if (ArrayBuffer.isView(value)) {
    const name = value.constructor.name
    if (!(name in ARRAYS)) throw new TypeError(`a message cannot have a ${name}`)
    parts.push(new Uint8Array(value.buffer, value.byteOffset, value.byteLength))
    return { [MARK]: name, part: parts.length - 1 }
  }
  if (Array.isArray(value)) return value.map((one) => packed(one, parts, depth + 1))
  if (Object.getPrototypeOf(value) !== Object.prototype || MARK in value) {
    throw new TypeError('a message has plain objects')
  }
  const entries = Object.entries(value).filter(([, one]) => one !== undefined)
  return Object.fromEntries(entries.map(([key, one]) => [key, packed(one, parts, depth + 1)]))
}

/**
 * The value of a message of {@link pack}. Its arrays have memory of their own.
 *
 * @throws CkptError `internal` for what `pack` has not made
 */
export function unpack({ body, parts }: Packed): unknown {
  return unpacked(body, parts, 0)
}

function unpacked(value: unknown, parts: readonly Uint8Array[], depth: number): unknown {
  if (depth > DEPTH_MAX) throw malformed('is nested too deeply')
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map((one) => unpacked(one, parts, depth + 1))
  if (MARK in value) return numbersOf(value as Record<string, unknown>, parts)
  const entries = Object.entries(value)
  return Object.fromEntries(entries.map(([key, one]) => [key, unpacked(one, parts, depth + 1)]))
}

function numbersOf(
  { [MARK]: name, part }: Record<string, unknown>,
  parts: readonly Uint8Array[],
): Numbers {
  if (typeof name !== 'string' || !Object.hasOwn(ARRAYS, name)) throw malformed('has an odd array')
  const kind = ARRAYS[name as ArrayName]
  const bytes = typeof part === 'number' ? parts[part] : undefined
  if (bytes === undefined) throw malformed('lacks a part')
  if (bytes.length % kind.BYTES_PER_ELEMENT !== 0) throw malformed('has a part of odd length')
  return new kind(bytes.slice().buffer)
}

function malformed(how: string): CkptError {
  return new CkptError('internal', `a message of another daemon ${how}`)
}
