import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { planInputs } from '../plan/plan-arbitraries.test.ts'
import { decodePlacementMap } from './placement-map.ts'
import { type CopyDraw, encodeMap } from './placement-map-encoding.test.ts'
import { planDirect } from './plan-direct.ts'

const ONE = { sizes: [1, 1, 1], sourceStrides: [0, 0, 0], destinationStrides: [0, 0, 0] } as const

/** Every byte of the table's tensors, cut into boxes of up to three dimensions that lie anywhere in two allocations. */
function placements(bytes: readonly number[]): fc.Arbitrary<CopyDraw[]> {
  const draw = fc.record({
    shape: fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 3 })),
    gaps: fc.tuple(fc.nat({ max: 5 }), fc.nat({ max: 9 }), fc.nat({ max: 40 })),
    allocation: fc.nat({ max: 1 }),
  })
  return fc.array(draw, { minLength: bytes.length, maxLength: bytes.length }).map((draws) => {
    const next = [0, 0]
    return bytes.flatMap((size, tensor): CopyDraw[] => {
      const { shape, gaps, allocation } = draws[tensor]!
      const begin = next[allocation]! + gaps[2]
      if (size === 0) return []
      const [outer, inner] = shape
      const run = Math.floor(size / (outer * inner))
      const copies: CopyDraw[] = []
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

describe('planDirect', () => {
  test('brings every byte where the map says, out of one source buffer at a time', () => {
    const inputs = planInputs.chain((input) =>
      placements([...input.table.bytes]).map((draws) => ({ input, draws })),
    )
    fc.assert(
      fc.property(inputs, ({ input: { table, sources }, draws }) => {
        const allocationBytes = [2 ** 20, 2 ** 20]
        const map = decodePlacementMap(encodeMap(table.names, allocationBytes, draws))
        const plan = planDirect(map, table, sources)
        if ('reason' in plan) throw new Error(plan.reason)
        // of each byte of an allocation where it comes from
        const wanted = new Map<string, string>()
        for (const draw of draws) {
          const { sizes, sourceStrides: of, destinationStrides: to } = draw
          const start = (table.offsets[draw.tensor] as number) + draw.source
          for (let i = 0; i < sizes[0]; i++) {
            for (let j = 0; j < sizes[1]; j++) {
              for (let k = 0; k < draw.run; k++) {
                const at = `${draw.allocation}:${draw.destination + i * to[0] + j * to[1] + k}`
                const from = start + i * of[0] + j * of[1] + k
                wanted.set(at, `${table.owners[draw.tensor]}:${from}`)
              }
            }
          }
        }
        let last = [-1, -1]
        for (const copy of plan) {
          const { owner, source, sourcePitch, destination, destinationPitch, width, height } = copy
          expect(owner > last[0]! || source >= last[1]!).toBe(true)
          last = [owner, source]
          expect(height === 1 || Math.min(sourcePitch, destinationPitch) >= width).toBe(true)
          const end = source + (height - 1) * sourcePitch + width
          const { starts, bytes } = sources[owner]!
          const holds = (start: number, k: number) => start <= source && end <= start + bytes[k]!
          expect([...starts].some(holds)).toBe(true)
          for (let row = 0; row < height; row++) {
            for (let k = 0; k < width; k++) {
              const at = `${copy.allocation}:${destination + row * destinationPitch + k}`
              expect(wanted.get(at)).toBe(`${owner}:${source + row * sourcePitch + k}`)
              wanted.delete(at)
            }
          }
        }
        expect(wanted.size).toBe(0)
      }),
      { numRuns: 60 },
    )
  })

  const table = {
    names: ['a', 'b'],
    dtypes: new Uint8Array(2),
    shapes: [[8], [8]],
    bytes: Float64Array.of(8, 8),
    owners: new Uint32Array(2),
    offsets: Float64Array.of(0, 8),
  }
  const sources = [{ starts: Float64Array.of(0), bytes: Float64Array.of(16) }]
  const copy = (tensor: number, destination: number, run = 8): CopyDraw => {
    return { tensor, source: 0, allocation: 0, destination, run, ...ONE }
  }
  const plan = (names: string[], ...copies: CopyDraw[]) =>
    planDirect(decodePlacementMap(encodeMap(names, [64], copies)), table, sources)

  test('neighbours on both sides are one copy', () => {
    const one = { owner: 0, source: 0, allocation: 0, height: 1 }
    const whole = { ...one, sourcePitch: 16, destinationPitch: 16, destination: 4, width: 16 }
    expect(plan(['a', 'b'], copy(1, 12), copy(0, 4))).toEqual([whole])
    expect(plan(['a', 'b'], copy(1, 13), copy(0, 4))).toHaveLength(2)
  })

  test('the largest dimension becomes the rows of one copy', () => {
    const strides = [12, 2, 0] as const
    const box = { sizes: [2, 3, 1], sourceStrides: [3, 1, 0], destinationStrides: strides } as const
    expect(plan(['a', 'b'], { ...copy(0, 0, 1), ...box })).toMatchObject([
      { source: 0, destination: 0, width: 1, height: 3, sourcePitch: 1, destinationPitch: 2 },
      { source: 3, destination: 12, width: 1, height: 3 },
    ])
  })

  test('a map of another checkpoint is told', () => {
    expect(plan(['a'], copy(0, 0))).toEqual({ reason: "the engine's placement map has no b" })
    expect(plan(['a', 'b', 'c'], copy(2, 0))).toEqual({ reason: 'the checkpoint has no c' })
    const reason = "a is smaller than in the engine's placement map"
    expect(plan(['a', 'b'], copy(0, 0, 9))).toEqual({ reason })
  })
})
