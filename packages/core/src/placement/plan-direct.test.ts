import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { planInputs } from '../plan/plan-arbitraries.test.ts'
import { dtypeIndex, torchView } from '../safetensors/dtypes.ts'
import { buildTable } from '../checkpoint/build-table.ts'
import type { TensorTable } from '../checkpoint/table.ts'
import { encodePlacementMap, type MapCopy } from './encode-map.ts'
import { decodePlacementMap } from './placement-map.ts'
import { planDirect } from './plan-direct.ts'

const ONE = { sizes: [1, 1, 1], sourceStrides: [0, 0, 0], destinationStrides: [0, 0, 0] } as const

/** Every byte of the table's tensors, cut into boxes of up to three dimensions that lie anywhere in two allocations. */
function placements(bytes: readonly number[]): fc.Arbitrary<MapCopy[]> {
  const draw = fc.record({
    shape: fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 3 })),
    gaps: fc.tuple(fc.nat({ max: 5 }), fc.nat({ max: 9 }), fc.nat({ max: 40 })),
    allocation: fc.nat({ max: 1 }),
  })
  return fc.array(draw, { minLength: bytes.length, maxLength: bytes.length }).map((draws) => {
    const next = [0, 0]
    return bytes.flatMap((size, tensor): MapCopy[] => {
      const { shape, gaps, allocation } = draws[tensor]!
      const begin = next[allocation]! + gaps[2]
      if (size === 0) return []
      const [outer, inner] = shape
      const run = Math.floor(size / (outer * inner))
      const copies: MapCopy[] = []
      let destination = begin
      if (run > 0) {
        const pitch = run + gaps[0]
        const plane = pitch * inner + gaps[1]
        const sizes = [outer, inner, 1] as const
        const sourceStrides = [inner * run, run, 0] as const
        const strides = { sizes, sourceStrides, destinationStrides: [plane, pitch, 0] as const }
        copies.push({ tensor, source: 0, allocation, destination, run, ...strides })
        destination += plane * outer
      }
      const rest = size - run * outer * inner
      if (rest > 0) {
        copies.push({ tensor, source: size - rest, allocation, destination, run: rest, ...ONE })
      }
      next[allocation] = destination + rest
      return copies
    })
  })
}

/** As its worker says it. */
function encoded(
  table: TensorTable,
  allocationBytes: readonly number[],
  draws: readonly MapCopy[],
) {
  const tensors = table.names.map((name, row) => {
    const { torch: dtype, shape } = torchView(table.dtypes[row]!, table.shapes[row]!)!
    return { name, dtype, shape }
  })
  return encodePlacementMap(tensors, allocationBytes, draws)
}

const knownToTorch = planInputs.filter(({ table }) => {
  return table.names.every((_, row) => torchView(table.dtypes[row]!, table.shapes[row]!) !== null)
})

/** Of each byte of an allocation, as `allocation:offset`, where it comes from, as `owner:offset`. */
function wantedBytes(table: TensorTable, draws: readonly MapCopy[]): Map<string, string> {
  const wanted = new Map<string, string>()
  for (const draw of draws) {
    const { sizes, sourceStrides: of, destinationStrides: to } = draw
    const start = table.offsets[draw.tensor]! + draw.source
    for (let i = 0; i < sizes[0]!; i++) {
      for (let j = 0; j < sizes[1]!; j++) {
        for (let k = 0; k < draw.run; k++) {
          const at = `${draw.allocation}:${draw.destination + i * to[0]! + j * to[1]! + k}`
          const from = start + i * of[0]! + j * of[1]! + k
          wanted.set(at, `${table.owners[draw.tensor]}:${from}`)
        }
      }
    }
  }
  return wanted
}

describe('planDirect', () => {
  test('brings every byte where the map says, out of one source buffer at a time', () => {
    const inputs = knownToTorch.chain((input) =>
      placements([...input.table.bytes]).map((draws) => ({ input, draws })),
    )
    fc.assert(
      fc.property(inputs, ({ input: { table, sources }, draws }) => {
        const map = decodePlacementMap(encoded(table, [2 ** 20, 2 ** 20], draws))
        const plan = planDirect(map, table, sources)
        if ('reason' in plan) throw new Error(plan.reason)
        const wanted = wantedBytes(table, draws)
        expect(plan.bytes).toBe(wanted.size)
        const arrives = (at: string, from: string | undefined) => {
          expect(wanted.get(at)).toBe(from)
          wanted.delete(at)
        }
        const inOneBuffer = (owner: number, begin: number, end: number) => {
          const { starts, bytes } = sources[owner]!
          const holds = (start: number, k: number) => start <= begin && end <= start + bytes[k]!
          expect([...starts].some(holds)).toBe(true)
        }
        let last = [-1, -1]
        for (const copy of plan.copies) {
          const { owner, source, sourcePitch, destination, destinationPitch, width, height } = copy
          expect(owner > last[0]! || source >= last[1]!).toBe(true)
          last = [owner, source]
          expect(height === 1 || Math.min(sourcePitch, destinationPitch) >= width).toBe(true)
          inOneBuffer(owner, source, source + (height - 1) * sourcePitch + width)
          for (let row = 0; row < height; row++) {
            for (let k = 0; k < width; k++) {
              const at = `${copy.allocation}:${destination + row * destinationPitch + k}`
              arrives(at, `${owner}:${source + row * sourcePitch + k}`)
            }
          }
        }
        const gathered = new Map<number, string>()
        for (const { owner, source, sourcePitch, offset, width, height } of plan.staging.pieces) {
          inOneBuffer(owner, source, source + (height - 1) * sourcePitch + width)
          for (let i = 0; i < width * height; i++) {
            const from = source + Math.floor(i / width) * sourcePitch + (i % width)
            gathered.set(offset + i, `${owner}:${from}`)
          }
        }
        expect(gathered.size).toBe(plan.staging.bytes)
        for (const { offset, allocation, destination, bytes } of plan.staging.copies) {
          for (let i = 0; i < bytes; i++) {
            arrives(`${allocation}:${destination + i}`, gathered.get(offset + i))
          }
        }
        expect(wanted.size).toBe(0)
      }),
      { numRuns: 60 },
    )
  })

  const table = {
    names: ['a', 'b'],
    dtypes: new Uint8Array(2).fill(dtypeIndex('U8')),
    shapes: [[8], [8]],
    bytes: Float64Array.of(8, 8),
    owners: new Uint32Array(2),
    offsets: Float64Array.of(0, 8),
  }
  const sources = [{ starts: Float64Array.of(0), bytes: Float64Array.of(16) }]
  const copy = (tensor: number, destination: number, run = 8): MapCopy => {
    return { tensor, source: 0, allocation: 0, destination, run, ...ONE }
  }
  const tensor = (name: string) => ({ name, dtype: 'uint8', shape: [8] })
  const plan = (names: string[], ...copies: MapCopy[]) =>
    planDirect(
      decodePlacementMap(encodePlacementMap(names.map(tensor), [64], copies)),
      table,
      sources,
    )

  test('neighbours on both sides are one copy', () => {
    const one = { owner: 0, source: 0, allocation: 0, height: 1 }
    const whole = { ...one, sourcePitch: 16, destinationPitch: 16, destination: 4, width: 16 }
    const none = { bytes: 0, pieces: [], copies: [] }
    const joined = { copies: [whole], groups: [0, 1], staging: none, fetched: [], bytes: 16 }
    expect(plan(['a', 'b'], copy(1, 12), copy(0, 4))).toEqual(joined)
    expect(plan(['a', 'b'], copy(1, 13), copy(0, 4))).toMatchObject({ groups: [0, 2] })
  })

  test('the largest dimension becomes the rows of one copy', () => {
    const strides = [12, 2, 0] as const
    const box = { sizes: [2, 3, 1], sourceStrides: [3, 1, 0], destinationStrides: strides } as const
    expect(plan(['a', 'b'], { ...copy(0, 0, 1), ...box })).toMatchObject({
      copies: [
        { source: 0, destination: 0, width: 1, height: 3, sourcePitch: 1, destinationPitch: 2 },
        { source: 3, destination: 12, width: 1, height: 3 },
      ],
    })
  })

  test('small neighbours of places that come from elsewhere are gathered and are one copy', () => {
    const staging = {
      bytes: 16,
      pieces: [
        { owner: 0, source: 8, sourcePitch: 8, offset: 0, width: 8, height: 1 },
        { owner: 0, source: 0, sourcePitch: 8, offset: 8, width: 8, height: 1 },
      ],
      copies: [{ offset: 0, allocation: 0, destination: 4, bytes: 16 }],
    }
    const swapped = { copies: [], groups: [0], staging, fetched: [], bytes: 16 }
    expect(plan(['a', 'b'], copy(0, 12), copy(1, 4))).toEqual(swapped)
    const tensors = ['a', 'b'].map(tensor)
    const map = decodePlacementMap(encodePlacementMap(tensors, [64], [copy(0, 12), copy(1, 4)]))
    const one = { copies: [], staging: { bytes: 16 } }
    expect(planDirect(map, table, sources, { stagingBytesMax: 16 })).toMatchObject(one)
    for (const stagingBytesMax of [0, 15]) {
      expect(planDirect(map, table, sources, { stagingBytesMax })).toMatchObject({
        copies: [{ destination: 12 }, { destination: 4 }],
        staging: { bytes: 0, pieces: [], copies: [] },
        bytes: 16,
      })
    }
  })

  const ofOne = (bytes: number) => ({
    tensors: [{ name: 'w', dtype: 'uint8', shape: [bytes] }],
    table: buildTable([
      { name: 'w', dtype: dtypeIndex('U8'), shape: [bytes], bytes, owner: 0, offset: 0 },
    ]),
    sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(bytes) }],
  })

  test.each([
    ['one run', { run: 200 * 2 ** 20, sizes: [1, 1, 1] }, [64, 64, 64, 8]],
    ['rows', { run: 10 * 2 ** 20, sizes: [20, 1, 1] }, [60, 60, 60, 20]],
    ['long rows', { run: 100 * 2 ** 20, sizes: [2, 1, 1] }, [64, 36, 28, 64, 8]],
  ] as const)('what cannot be called back is not large: %s', (_, form, mebibytes) => {
    const bytes = 200 * 2 ** 20
    const { tensors, table: whole, sources: all } = ofOne(bytes)
    const gap = form.run + 256
    const strides = { sourceStrides: [form.run, 0, 0], destinationStrides: [gap, 0, 0] }
    const draw = { ...copy(0, 0), ...strides, ...form }
    const map = decodePlacementMap(encodePlacementMap(tensors, [bytes + 20 * 256], [draw]))
    const made = planDirect(map, whole, all)
    if ('reason' in made) throw new Error(made.reason)
    const sizes = made.copies.map(({ width, height }) => (width * height) / 2 ** 20)
    expect(sizes).toEqual([...mebibytes])
    let source = 0
    for (const one of made.copies) {
      expect(one.source).toBe(source)
      expect(one.destination).toBe(source + Math.floor(source / form.run) * (gap - form.run))
      source += one.width * one.height
    }
    expect(source).toBe(bytes)
  })

  test('a large transposed tensor is not copied two bytes at a time', () => {
    const side = 1024
    const bytes = 2 * side * side
    const { tensors, table: whole, sources: all } = ofOne(bytes)
    const transposed = {
      sizes: [side, side, 1],
      sourceStrides: [2 * side, 2, 0],
      destinationStrides: [2, 2 * side, 0],
    }
    const map = decodePlacementMap(
      encodePlacementMap(tensors, [bytes], [{ ...copy(0, 0, 2), ...transposed }]),
    )
    expect(planDirect(map, whole, all)).toEqual({
      reason: `${bytes} bytes of it lie in rows of less than 64 bytes`,
    })
  })

  test('a map that would take millions of copies is not followed', () => {
    const size = 2 ** 40
    const { tensors, table: whole, sources: all } = ofOne(1)
    const many = { sizes: [size, 1, 1], destinationStrides: [1, 0, 0] }
    const map = decodePlacementMap(
      encodePlacementMap(tensors, [size], [{ ...copy(0, 0, 1), ...many }]),
    )
    expect(planDirect(map, whole, all)).toEqual({
      reason: `the engine's placement map takes ${size} copies, more than 1048576`,
    })
  })

  test('what another host has is not gathered, and copied from elsewhere', () => {
    const map = decodePlacementMap(
      encodePlacementMap([tensor('a'), tensor('b')], [64], [copy(0, 12), copy(1, 4)]),
    )
    const all = planDirect(map, table, sources)
    if ('reason' in all) throw new Error(all.reason)
    expect(all).toMatchObject({ copies: [], fetched: [], bytes: 16 })
    expect(all.staging.pieces.map(({ owner }) => owner)).toEqual([0, 0])
    expect(planDirect(map, table, sources, { isFetched: (owner) => owner === 0 })).toMatchObject({
      copies: [],
      groups: [0],
      staging: { bytes: 0, pieces: [] },
      fetched: [
        { owner: 0, source: 0, destination: 12, width: 8 },
        { owner: 0, source: 8, destination: 4, width: 8 },
      ],
      bytes: 16,
    })
  })

  test('a map of another checkpoint is told', () => {
    expect(plan(['a'], copy(0, 0))).toEqual({ reason: "the engine's placement map has no b" })
    expect(plan(['a', 'b', 'c'], copy(2, 0))).toEqual({ reason: 'the checkpoint has no c' })
    const reason = "a is smaller than in the engine's placement map"
    expect(plan(['a', 'b'], copy(0, 0, 9))).toEqual({ reason })
    const other = [tensor('a'), { name: 'b', dtype: 'int8', shape: [8] }]
    const map = decodePlacementMap(encodePlacementMap(other, [64], [copy(0, 0)]))
    const words = "b is uint8 [8], in the engine's placement map int8 [8]"
    expect(planDirect(map, table, sources)).toEqual({ reason: words })
    const shaped = [tensor('a'), { name: 'b', dtype: 'uint8', shape: [2, 4] }]
    const reshaped = decodePlacementMap(encodePlacementMap(shaped, [64], [copy(0, 0)]))
    expect(planDirect(reshaped, table, sources)).toMatchObject({
      reason: "b is uint8 [8], in the engine's placement map uint8 [2,4]",
    })
  })
})
