import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { CkptError } from '../api/errors.ts'
import { arrange } from '../checkpoint/arrange.ts'
import { buildTable, type TensorRow } from '../checkpoint/build-table.ts'
import { mergeRows } from '../checkpoint/merge-rows.ts'
import { DTYPES, tensorBytes } from '../safetensors/dtypes.ts'
import { decodeLayout, encodeLayout, type HeldLayout } from './layout-columns.ts'
import { mergeLayouts } from './merge-layouts.ts'

const F32 = DTYPES.findIndex(({ name }) => name === 'F32')
const F16 = DTYPES.findIndex(({ name }) => name === 'F16')

interface Tensor {
  readonly name: string
  readonly dtype: number
  readonly shape: readonly number[]
}

const tensor = fc.record({
  name: fc.oneof(
    fc.string({ unit: 'grapheme', maxLength: 12 }),
    fc
      .tuple(fc.nat(12), fc.nat(3))
      .map(([layer, part]) => `layers.${layer}.w${'0'.repeat(part)}${layer}`),
  ),
  dtype: fc.constantFrom(F32, F16),
  shape: fc.array(fc.nat(5), { maxLength: 4 }),
})
const tensorsOfOwners = fc.array(
  fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 12 }),
  { maxLength: 4 },
)

/** One buffer an owner, its tensors one after another; names of a table differ. */
function layoutOf(owners: readonly (readonly Tensor[])[]): HeldLayout {
  const seen = new Set<string>()
  const rows: TensorRow[] = []
  const sources = owners.map((tensors, owner) => {
    const mine = tensors.filter(({ name }) => !seen.has(name) && seen.add(name))
    const bytes = mine.map(({ dtype, shape }) => tensorBytes(dtype, shape) as number)
    const { offsets, totalBytes } = arrange(bytes)
    mine.forEach((one, i) => {
      rows.push({ ...one, bytes: bytes[i] as number, owner, offset: offsets[i] as number })
    })
    const starts = Float64Array.of(0)
    return { starts, bytes: Float64Array.of(totalBytes), nodes: Int32Array.of(owner % 2) }
  })
  return { table: buildTable(rows), sources }
}

test('what is decoded is what was encoded, wherever the message begins', () => {
  fc.assert(
    fc.property(tensorsOfOwners, fc.nat(9), (owners, shift) => {
      const layout = layoutOf(owners)
      const encoded = encodeLayout(layout)
      const moved = new Uint8Array(encoded.length + shift)
      moved.set(encoded, shift)
      expect(decodeLayout(moved.subarray(shift))).toEqual(layout)
    }),
  )
})

test('a message that was changed is refused, or is another layout whose tensors lie in its buffers', () => {
  const layout = layoutOf([
    [
      { name: 'a', dtype: F32, shape: [3, 2] },
      { name: 'b', dtype: F16, shape: [7] },
    ],
  ])
  const encoded = encodeLayout(layout)
  fc.assert(
    fc.property(fc.nat(encoded.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const broken = encoded.slice()
      broken[at] = (broken[at] as number) ^ change
      let read: HeldLayout
      try {
        read = decodeLayout(broken)
      } catch (error) {
        expect(error).toBeInstanceOf(CkptError)
        return
      }
      const [source] = read.sources
      const end = (source?.starts[0] ?? 0) + (source?.bytes[0] ?? 0)
      read.table.offsets.forEach((offset, i) => {
        expect(offset + (read.table.bytes[i] as number)).toBeLessThanOrEqual(end)
      })
    }),
    { numRuns: 2000 },
  )
  for (const length of [0, 10, encoded.length - 1]) {
    expect(() => decodeLayout(encoded.slice(0, length))).toThrow('cannot be read')
  }
})

test('parts are merged to the table that all of their rows make, the first of a name first', () => {
  fc.assert(
    fc.property(fc.array(tensorsOfOwners, { maxLength: 5 }), (nodes) => {
      // the same name is the same tensor everywhere
      const first = new Map<string, Tensor>()
      const agreed = nodes.map((owners) =>
        owners.map((tensors) =>
          tensors.map((one) => first.get(one.name) ?? (first.set(one.name, one), one)),
        ),
      )
      const parts = agreed.map((owners, node) => ({
        place: `node ${node}`,
        layout: layoutOf(owners),
      }))
      const merged = mergeLayouts(parts)
      const rows = parts.flatMap(({ place, layout: { table } }, part) =>
        table.names.map((name, i) => ({
          name,
          place,
          dtype: table.dtypes[i] as number,
          shape: table.shapes[i] as readonly number[],
          bytes: table.bytes[i] as number,
          owner: (merged.firstOwners[part] as number) + (table.owners[i] as number),
          offset: table.offsets[i] as number,
        })),
      )
      expect(merged.table).toEqual(buildTable(mergeRows(rows)))
      expect(merged.sources).toEqual(parts.flatMap(({ layout }) => [...layout.sources]))
    }),
  )
})

test('two daemons that disagree on a tensor are named', () => {
  const of = (shape: readonly number[]) => layoutOf([[{ name: 'w', dtype: F32, shape }]])
  const parts = [
    { place: 'node 0', layout: of([2, 3]) },
    { place: 'node 1', layout: of([3, 2]) },
  ]
  expect(() => mergeLayouts(parts)).toThrow(
    "'w' is F32 [2, 3] (24 bytes) in node 0, but F32 [3, 2] (24 bytes) in node 1",
  )
})
