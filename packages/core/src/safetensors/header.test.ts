import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { CkptError } from '../api/errors.ts'
import { DTYPES, dtypeIndex, tensorBytes } from './dtypes.ts'
import { HEADER_PREFIX_BYTES, headerBytes, parseHeader, type SafetensorsHeader } from './header.ts'

const encoder = new TextEncoder()

function prefix(bytes: number | bigint): Uint8Array {
  const view = new DataView(new ArrayBuffer(8))
  view.setBigUint64(0, BigInt(bytes), true)
  return new Uint8Array(view.buffer)
}

function parse(json: string, dataBytes: number): SafetensorsHeader {
  const bytes = encoder.encode(json)
  return parseHeader(bytes, HEADER_PREFIX_BYTES + bytes.length + dataBytes, 'm.safetensors')
}

function failure(run: () => unknown): CkptError {
  try {
    run()
  } catch (error) {
    if (error instanceof CkptError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

function tensor(dtype: string, shape: unknown, offsets: unknown): string {
  return JSON.stringify({ dtype, shape, data_offsets: offsets })
}

const F32 = tensor('F32', [1], [0, 4])

describe('what is accepted', () => {
  test('a file without tensors', () => {
    const header = parse('{}', 0)
    expect(header).toEqual({ tensors: [], metadata: {}, dataStart: 10 })
    expect(parse('{"__metadata__":null}  ', 0).tensors).toEqual([])
  })

  test('tensors without elements, scalars, packed types, metadata, padding, unknown fields', () => {
    const json = `{"__metadata__":{"format":"pt","__proto__":"x"},
      "b":${tensor('F4', [3, 2], [4, 7])},
      "empty":${tensor('F64', [0, 9], [4, 4])},"a\\u0301":${tensor('F32', [], [0, 4])},
      "u":{"extra":[1,-2.5e3,{"x":null}],"dtype":"BOOL","shape":[1],"data_offsets":[7,8]}}   `
    const header = parse(json, 8)
    const start = 8 + encoder.encode(json).length
    expect(header.dataStart).toBe(start)
    expect(Object.entries(header.metadata)).toEqual([
      ['format', 'pt'],
      ['__proto__', 'x'],
    ])
    expect(header.tensors).toEqual([
      { name: 'a\u0301', dtype: dtypeIndex('F32'), shape: [], begin: start, bytes: 4 },
      { name: 'empty', dtype: dtypeIndex('F64'), shape: [0, 9], begin: start + 4, bytes: 0 },
      { name: 'b', dtype: dtypeIndex('F4'), shape: [3, 2], begin: start + 4, bytes: 3 },
      { name: 'u', dtype: dtypeIndex('BOOL'), shape: [1], begin: start + 7, bytes: 1 },
    ])
  })

  test('every dtype', () => {
    for (const { name, bits } of DTYPES) {
      const [found] = parse(`{"t":${tensor(name, [8], [0, bits])}}`, bits).tensors
      expect(found).toMatchObject({ dtype: dtypeIndex(name), bytes: bits })
    }
  })

  test('a name that starts with a byte order mark keeps it', () => {
    const names = parse(`{"\ufeffa":${F32},"a":${tensor('U8', [0], [0, 0])}}`, 4).tensors
    expect(names.map((t) => t.name)).toEqual(['a', '\ufeffa'])
  })

  test('a length that looks like a pickle', () => {
    expect(headerBytes(Uint8Array.of(0x80, 2, 0, 0, 0, 0, 0, 0), 5000, 'm.safetensors')).toBe(640)
  })
})

const many = (count: number, text: string) => Array.from({ length: count }, () => text).join(',')
/** JSON, bytes of data behind it, the tensor to be named, the reason. */
const BAD: readonly (readonly [string, number, string | undefined, string])[] = [
  ['', 0, undefined, 'expected an object'],
  ['[]', 0, undefined, 'expected an object'],
  ['{"a":1}', 0, 'a', 'expected an object'],
  [`{"a":${F32}`, 4, 'a', "expected ',' or '}'"],
  [`{"a":${F32}} x`, 4, undefined, 'more text after the end'],
  [`{"a":${F32},}`, 4, 'a', 'expected a string'],
  [`{"a":${F32},"a":${F32}}`, 4, 'a', 'twice'],
  [`{"a":${F32},"\\u0061":${F32}}`, 4, 'a', 'twice'],
  ['{"__metadata__":{},"__metadata__":{}}', 0, '__metadata__', 'twice'],
  ['{"__metadata__":{"a":1}}', 0, '__metadata__', 'expected a string'],
  [`{"a":${tensor('F31', [1], [0, 4])}}`, 4, 'a', "unknown dtype 'F31'"],
  [`{"a":${tensor('F32', [1], [0, 8])}}`, 8, 'a', 'has 4 bytes, its data 8'],
  [`{"a":${tensor('F32', [2], [0, 4])}}`, 4, 'a', 'has 8 bytes, its data 4'],
  [`{"a":${tensor('F4', [3], [0, 2])}}`, 2, 'a', 'no whole number of bytes'],
  [`{"a":${tensor('U8', [2 ** 52, 2 ** 52], [0, 2])}}`, 2, 'a', 'no whole number of bytes'],
  [`{"a":${tensor('F32', [1], [4, 0])}}`, 4, 'a', 'before it starts'],
  [`{"a":${tensor('F32', [1], [0, 4])}}`, 3, 'a', 'out of range: the file has 3 bytes'],
  [`{"a":${F32},"b":${tensor('F32', [1], [2, 6])}}`, 6, 'b', "overlaps that of tensor 'a'"],
  [`{"a":${F32},"b":${tensor('F32', [1], [0, 4])}}`, 4, 'b', "overlaps that of tensor 'a'"],
  [`{"a":${F32},"b":${tensor('U8', [0], [2, 2])}}`, 4, 'b', "overlaps that of tensor 'a'"],
  [`{"a":${F32},"b":${tensor('F32', [1], [5, 9])}}`, 9, 'b', 'a gap of 1 bytes'],
  [`{"a":${tensor('F32', [1], [1, 5])}}`, 5, 'a', 'a gap of 1 bytes'],
  [`{"a":${F32}}`, 5, undefined, '1 bytes at the end of the file belong to no tensor'],
  ['{}', 1, undefined, '1 bytes at the end'],
  ['{"a":{"dtype":"F32","shape":[1]}}', 0, 'a', "'data_offsets' is missing"],
  ['{"a":{"shape":[1],"data_offsets":[0,4]}}', 4, 'a', "'dtype' is missing"],
  ['{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4, 'a', "'shape' is missing"],
  ['{"a":{"dtype":"F32","dtype":"F32"}}', 0, 'a', "'dtype' comes twice"],
  ['{"a":{"shape":[],"shape":[]}}', 0, 'a', "'shape' comes twice"],
  ['{"a":{"data_offsets":[0,0],"data_offsets":[0,0]}}', 0, 'a', "'data_offsets' comes twice"],
  [`{"a":${tensor('F32', [1], [0])}}`, 4, 'a', 'instead of 2'],
  [`{"a":${tensor('F32', [1], [0, 4, 8])}}`, 4, 'a', 'more than 2 values'],
  [`{"a":${tensor('F32', [-1], [0, 4])}}`, 4, 'a', 'not a non-negative integer'],
  [`{"a":${tensor('F32', [1.5], [0, 4])}}`, 4, 'a', 'not a non-negative integer'],
  [
    '{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}',
    4,
    'a',
    'not a non-negative integer',
  ],
  ['{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}', 4, 'a', 'leading zero'],
  [`{"a":${tensor('F32', ['1'], [0, 4])}}`, 4, 'a', 'not a non-negative integer'],
  [`{"a":{"dtype":"U8","shape":[9007199254740992]`, 4, 'a', 'larger than 2^53 - 1'],
  [`{"a":{"dtype":"U8","shape":[${'9'.repeat(400)}]`, 4, 'a', 'larger than 2^53 - 1'],
  [`{"a":{"shape":[${many(65, '1')}]`, 4, 'a', 'more than 64 values'],
  [`{"a":{${many(65, '"x":1')}}}`, 0, 'a', 'too many unknown fields'],
  [`{"a":{"x":${'['.repeat(1000)}`, 0, 'a', 'nested too deeply'],
  [`{"a":{"x":[${many(600_000, '1')}]}}`, 0, 'a', 'more than 1 MiB'],
  ['{"a":{"x":tru}}', 0, 'a', 'not a value'],
  ['{"a":{"x":-}}', 0, 'a', 'not a number'],
  ['{"a\u0001":1}', 0, undefined, 'control character'],
  ['{"a\\x":1}', 0, undefined, 'not valid UTF-8 or has a wrong escape'],
  ['{"a\\ud800":1}', 0, undefined, 'not valid UTF-8 or has a wrong escape'],
  ['{"a', 0, undefined, 'a string without an end'],
  ['{"a\\', 0, undefined, 'a string without an end'],
  ['\ufeff{}', 0, undefined, 'expected an object'],
]

describe('what is refused', () => {
  test.each(BAD.map((row) => [row[3], ...row] as const))('%s', (reason, json, dataBytes, name) => {
    const error = failure(() => parse(json, dataBytes))
    expect(error.code).toBe('safetensors_invalid')
    expect(error.failure.tensor).toBe(name)
    expect(error.failure.phase).toBe('register')
    expect(error.message).toStartWith('m.safetensors: ')
    expect(error.message).toContain(reason)
    if (name !== undefined) expect(error.message).toContain(`'${name}'`)
  })

  test('bytes that are not UTF-8', () => {
    const json = Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a)
    expect(failure(() => parseHeader(json, 100, 'f')).message).toContain('UTF-8')
  })

  test('a file that is too short, a header that is too large', () => {
    const message = (bytes: number | bigint, fileBytes: number) =>
      failure(() => headerBytes(prefix(bytes), fileBytes, 'm.safetensors')).message
    expect(message(0, 7)).toContain('not a safetensors file: 7 bytes')
    expect(message(93, 100)).toContain('larger than the file, which has 100')
    expect(headerBytes(prefix(92), 100, 'f')).toBe(92)
    expect(message(2n ** 64n - 1n, 2 ** 40)).toContain('the most are 100000000')
    expect(message(100_000_001, 2 ** 40)).toContain('the most are 100000000')
    expect(headerBytes(prefix(100_000_000), 2 ** 40, 'f')).toBe(100_000_000)
    const empty = failure(() => headerBytes(new Uint8Array(0), 0, 'f'))
    expect(empty.message).toContain('not a safetensors file: 0 bytes')
    expect(failure(() => parseHeader(new Uint8Array(9), 10, 'f')).message).toContain('larger than')
  })

  const bytes = (text: string) => Uint8Array.from(text, (c) => c.charCodeAt(0))
  test.each([
    ['a.npy', prefix(10), 'a NumPy array'],
    ['A.NPZ', prefix(10), 'a NumPy archive'],
    ['pytorch_model.bin', prefix(10), 'a torch or zip archive'],
    ['a.pt', prefix(10), 'a torch or zip archive'],
    ['a.pth', prefix(10), 'a torch or zip archive'],
    ['a.ckpt', prefix(10), 'a torch or zip archive'],
    ['a.zip', prefix(10), 'a torch or zip archive'],
    ['a.pkl', prefix(10), 'a pickle'],
    ['a.pickle', prefix(10), 'a pickle'],
    ['a.gguf', prefix(10), 'a GGUF file'],
    ['a.h5', prefix(10), 'an HDF5 file'],
    ['a.hdf5', prefix(10), 'an HDF5 file'],
    ['a.onnx', prefix(10), 'an ONNX model'],
    ['a.msgpack', prefix(10), 'a MessagePack file'],
    ['blob', bytes('\x93NUMPY\x01\x00'), 'a NumPy array'],
    ['blob', bytes('PK\x03\x04\x00\x00\x08\x08'), 'a torch or zip archive'],
    ['blob', bytes('\x80\x02\x8a\x0al\xfc\x9cF'), 'a pickle'],
    ['blob', bytes('\x80\x04\x95\x10\x00\x00\x00\x00'), 'a pickle'],
    ['blob', bytes('GGUF\x03\x00\x00\x00'), 'a GGUF file'],
    ['blob', bytes('\x89HDF\r\n\x1a\n'), 'an HDF5 file'],
    ['blob', bytes('\x80\x04N.'), 'a pickle'],
  ])('another format: %p', (file, start, name) => {
    const error = failure(() => headerBytes(start, start.length < 8 ? start.length : 5000, file))
    expect(error.code).toBe('format_not_supported')
    expect(error.message).toStartWith(`${file}: ${name}`)
    expect(error.message).toContain('accepted are safetensors files')
  })

  const size = 100_000_000
  const fill = (text: string) => {
    const unit = encoder.encode(text)
    const buffer = new Uint8Array(size)
    for (let at = 0; at < 1000; at++) buffer[at] = unit[at % unit.length] as number
    for (let at = unit.length * 16; at < size; at *= 2) buffer.copyWithin(at, 0, at)
    return buffer
  }
  const withStart = (start: string, buffer: Uint8Array) => {
    buffer.set(encoder.encode(start))
    return buffer
  }
  const withEnd = (end: string, buffer: Uint8Array) => {
    buffer.set(encoder.encode(end), buffer.length - end.length)
    return buffer
  }
  test.each([
    ['zeros', () => new Uint8Array(size)],
    ['white space', () => fill(' ')],
    ['brackets', () => fill('[')],
    ['a string', () => withStart('{"', fill('a'))],
    ['a name', () => withStart('{"', withEnd('":1}', fill('a')))],
    ['a shape', () => withStart('{"a":{"shape":[', fill('1,'))],
    ['unknown values', () => withStart('{"a":{"x":[', fill('1,'))],
    ['metadata', () => withStart('{"__metadata__":{   ', fill('"a":"b",'))],
    ['tensors', () => withStart('{                  ', fill('"a":{},'))],
  ])('100 MB of nonsense, quickly: %s', (_, make) => {
    const json = make()
    const start = performance.now()
    const error = failure(() => parseHeader(json, size + 100, 'f'))
    expect(error.code).toBe('safetensors_invalid')
    expect(error.message.length).toBeLessThan(400)
    expect(performance.now() - start).toBeLessThan(3000)
  })
})

interface Written {
  readonly name: string
  readonly dtype: number
  readonly shape: number[]
  readonly bytes: number
}

const written: fc.Arbitrary<Written> = fc
  .record({
    name: fc.oneof(
      fc.string({ unit: 'binary', maxLength: 12 }),
      fc.stringMatching(/^layers\.\d{1,3}\.(weight|bias)$/),
    ),
    dtype: fc.nat({ max: DTYPES.length - 1 }),
    shape: fc.array(fc.nat({ max: 6 }), { maxLength: 4 }),
  })
  .map(({ name, dtype, shape }) => {
    // packed types need an even number of whole bytes
    const even = (DTYPES[dtype]?.bits ?? 8) < 8 ? [...shape, 4] : shape
    return { name, dtype, shape: even, bytes: tensorBytes(dtype, even) as number }
  })
  .filter(({ name }) => name !== '__metadata__')

const headers = fc.record({
  tensors: fc.uniqueArray(written, { maxLength: 12, selector: (t) => t.name }),
  metadata: fc.option(fc.dictionary(fc.string(), fc.string({ unit: 'binary' }), { maxKeys: 4 })),
  shuffle: fc.infiniteStream(fc.nat()),
  space: fc.constantFrom('', ' ', '\n\t ', '\r\n'),
  padding: fc.nat({ max: 9 }),
})

/**
 * Writes a header as some other program might: fields and tensors in any order, with white space.
 */
function write(header: typeof headers extends fc.Arbitrary<infer T> ? T : never): {
  json: string
  dataBytes: number
} {
  const { space } = header
  let end = 0
  const entries = header.tensors.map(({ name, dtype, shape, bytes }) => {
    const fields = [
      `"dtype"${space}:"${DTYPES[dtype]?.name}"`,
      `"shape":${space}[${shape.join(`${space},`)}]`,
      `"data_offsets":[${end}${space},${end + bytes}]`,
    ]
    end += bytes
    return { name, text: `{${shuffled(fields, header.shuffle).join(`${space},${space}`)}}` }
  })
  const members = shuffled(entries, header.shuffle).map(
    ({ name, text }) => `${space}${JSON.stringify(name)}:${text}`,
  )
  if (header.metadata !== null) members.push(`"__metadata__":${JSON.stringify(header.metadata)}`)
  return { json: `{${members.join(',')}}${' '.repeat(header.padding)}`, dataBytes: end }
}

function shuffled<T>(items: readonly T[], random: Iterator<number>): T[] {
  const keyed = items.map((item) => ({ item, key: random.next().value as number }))
  return keyed.sort((a, b) => a.key - b.key).map(({ item }) => item)
}

/**
 * What safetensors does (`Metadata::validate`), on top of JSON.parse: throws or returns the names
 * by offset.
 */
function reference(json: string, dataBytes: number): string[] {
  const parsed = JSON.parse(json) as Record<string, unknown>
  const rows = Object.entries(parsed)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, value]) => {
      const { dtype, shape, data_offsets } = value as {
        dtype: string
        shape: number[]
        data_offsets: number[]
      }
      const [begin, end] = data_offsets as [number, number]
      const numbers = [...shape, ...data_offsets]
      if (!Array.isArray(shape) || !Array.isArray(data_offsets)) throw new Error('no array')
      if (data_offsets.length !== 2) throw new Error('not two offsets')
      if (!numbers.every((n) => Number.isSafeInteger(n) && n >= 0)) throw new Error('no integer')
      const bytes = tensorBytes(dtypeIndex(dtype), shape)
      if (bytes === null || bytes !== end - begin) throw new Error('bytes')
      return { name, begin, end }
    })
    .sort((a, b) => a.begin - b.begin || a.end - b.end)
  let at = 0
  for (const row of rows) {
    if (row.begin !== at) throw new Error('gap or overlap')
    at = row.end
  }
  if (at !== dataBytes) throw new Error('not covered')
  return rows.map((row) => row.name).sort()
}

describe('random headers', () => {
  test('are read back as they were written', () => {
    fc.assert(
      fc.property(headers, (header) => {
        const { json, dataBytes } = write(header)
        const parsed = parse(json, dataBytes)
        expect(parsed.metadata).toEqual({ ...header.metadata })
        const expected = new Map(header.tensors.map((t) => [t.name, t]))
        expect(parsed.tensors.length).toBe(header.tensors.length)
        let end = parsed.dataStart
        for (const { name, dtype, shape, begin, bytes } of parsed.tensors) {
          expect({ name, dtype, shape, bytes }).toEqual(expected.get(name) as Written)
          expect(begin).toBe(end)
          end += bytes
        }
        expect(end).toBe(parsed.dataStart + dataBytes)
      }),
      { numRuns: 300 },
    )
  })

  test('with changed bytes are refused, or are as valid as safetensors says', () => {
    const change = fc.record({
      at: fc.nat({ max: 2000 }),
      byte: fc.oneof(
        fc.constantFrom(...encoder.encode('0123456789{}[]",:\\ .-e')),
        fc.nat({ max: 255 }),
      ),
      kind: fc.constantFrom('set', 'insert', 'remove', 'cut', 'repeat'),
    })
    let acceptedCount = 0
    fc.assert(
      fc.property(
        headers,
        fc.array(change, { maxLength: 3 }),
        fc.integer({ min: -2, max: 2 }),
        (header, changes, more) => {
          const { json, dataBytes } = write(header)
          let bytes = [...encoder.encode(json)]
          for (const { at, byte, kind } of changes) {
            const place = at % (bytes.length + 1)
            if (kind === 'set') bytes[place] = byte
            else if (kind === 'insert') bytes.splice(place, 0, byte)
            else if (kind === 'remove') bytes.splice(place, 1)
            else if (kind === 'cut') bytes = bytes.slice(0, place)
            else bytes.splice(place, 0, ...bytes.slice(place, place + 40))
          }
          const changed = Uint8Array.from(bytes)
          const fileBytes = 8 + changed.length + Math.max(0, dataBytes + more)
          let names: string[] | undefined
          try {
            names = parseHeader(changed, fileBytes, 'f').tensors.map((t) => t.name)
          } catch (error) {
            expect(error).toBeInstanceOf(CkptError)
            expect((error as CkptError).code).toBe('safetensors_invalid')
          }
          if (names === undefined) return
          acceptedCount++
          const text = new TextDecoder('utf-8', { ignoreBOM: true }).decode(changed)
          expect(reference(text, fileBytes - 8 - changed.length)).toEqual(names.sort())
        },
      ),
      { numRuns: 3000 },
    )
    expect(acceptedCount).toBeGreaterThan(100)
  })
})
