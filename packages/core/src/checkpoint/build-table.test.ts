import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { CkptError } from '../api/errors.ts'
import { dtypeIndex } from '../safetensors/dtypes.ts'
import { arrange } from './arrange.ts'
import { buildTable, layoutDigest, type TensorRow } from './build-table.ts'
import { mergeRows } from './merge-rows.ts'
import { stripeOwners } from './stripes.ts'

const BF16 = dtypeIndex('BF16')

function row(name: string, change: Partial<TensorRow> = {}): TensorRow {
  return { name, dtype: BF16, shape: [2, 3], bytes: 12, owner: 0, offset: 0, ...change }
}

describe('buildTable', () => {
  test('has the rows in natural order', () => {
    const table = buildTable([
      row('l.10', { offset: 256, owner: 1 }),
      row('l.9', { shape: [], bytes: 2 }),
    ])
    expect(table.names).toEqual(['l.9', 'l.10'])
    expect(table.shapes).toEqual([[], [2, 3]])
    expect([...table.bytes]).toEqual([2, 12])
    expect([...table.owners]).toEqual([0, 1])
    expect([...table.offsets]).toEqual([0, 256])
    expect([...table.dtypes]).toEqual([BF16, BF16])
    expect(buildTable([]).names).toEqual([])
  })

  test('takes no name twice', () => {
    expect(() => buildTable([row('a'), row('a')])).toThrow("two rows are named 'a'")
  })
})

describe('layoutDigest', () => {
  const source = { starts: Float64Array.of(0), bytes: Float64Array.of(4096) }
  const rows = [row('a'), row('b', { offset: 256 })]
  const digest = (list: TensorRow[], sources = [source]) => layoutDigest(buildTable(list), sources)

  test('is the same for the same layout, whatever the order of the rows', () => {
    expect(digest(rows.toReversed())).toBe(digest(rows))
    expect(digest(rows)).toMatch(/^[0-9a-f]{32}$/)
  })

  test('differs when anything differs', () => {
    const changes: Partial<TensorRow>[] = [
      { name: 'c' },
      { dtype: dtypeIndex('F16') },
      { shape: [3, 2] },
      { shape: [6] },
      { owner: 1 },
      { offset: 512 },
    ]
    const digests = changes.map((change) =>
      digest([row('a'), row('b', { offset: 256, ...change })]),
    )
    digests.push(digest(rows), digest(rows, []), digest([]), digest([row('a')]))
    digests.push(digest(rows, [{ ...source, bytes: Float64Array.of(8192) }]))
    digests.push(digest(rows, [{ ...source, starts: Float64Array.of(512) }]))
    digests.push(digest(rows, [source, source]))
    expect(new Set(digests).size).toBe(digests.length)
  })
})

describe('mergeRows', () => {
  const at = (place: string, change: Partial<TensorRow> = {}) => ({ ...row('w', change), place })

  test('keeps the first of equal ones', () => {
    const [first, second, other] = [at('/a'), at('/b'), at('/b', { name: 'x' })]
    expect(mergeRows([first, second, other])).toEqual([first, other])
  })

  test.each([
    { dtype: dtypeIndex('F16') },
    { shape: [3, 2] },
    { shape: [2, 3, 1] },
    { bytes: 13 },
  ] as Partial<TensorRow>[])('names both places when %p', (change) => {
    let error: unknown
    try {
      mergeRows([at('/a'), at('rank 3', change)])
    } catch (thrown) {
      error = thrown
    }
    expect(error).toBeInstanceOf(CkptError)
    const { failure } = error as CkptError
    expect(failure).toMatchObject({ code: 'tensor_conflict', tensor: 'w' })
    expect(failure.message).toContain('in /a')
    expect(failure.message).toContain('in rank 3')
  })
})

describe('arrange', () => {
  test('aligns to 256 bytes and leaves no more room than that', () => {
    expect(arrange([])).toEqual({ offsets: new Float64Array(0), totalBytes: 0 })
    const { offsets, totalBytes } = arrange([1, 0, 256, 257, 0])
    expect([...offsets]).toEqual([0, 256, 256, 512, 1024])
    expect(totalBytes).toBe(1024)
  })

  test('beyond 32 bits', () => {
    expect(arrange([2 ** 40, 1]).offsets[1]).toBe(2 ** 40)
  })
})

describe('stripeOwners', () => {
  test('gives each stripe to the next daemon', () => {
    expect([...stripeOwners([4, 4, 4, 4, 4, 4], 2, 8)]).toEqual([0, 0, 1, 1, 0, 0])
    expect([...stripeOwners([20, 4, 4, 1], 3, 8)]).toEqual([0, 1, 1, 2])
    expect([...stripeOwners([1, 2, 3], 1)]).toEqual([0, 0, 0])
  })

  test('shares the bytes to within one stripe and one tensor', () => {
    const sizes = fc.array(fc.nat({ max: 10 }), { minLength: 1, maxLength: 200 })
    fc.assert(
      fc.property(sizes, fc.integer({ min: 1, max: 5 }), (bytes, daemonCount) => {
        const held = new Float64Array(daemonCount)
        stripeOwners(bytes, daemonCount, 16).forEach((owner, i) => {
          held[owner] = (held[owner] as number) + (bytes[i] as number)
        })
        expect(Math.max(...held) - Math.min(...held)).toBeLessThanOrEqual(16 + 10)
      }),
    )
  })

  test('does so also where every large tensor would begin in a stripe of the same daemon', () => {
    const bytes = Array.from({ length: 400 }, (_, i) => (i % 4 === 0 ? 10 : 7))
    const held = [0, 0]
    stripeOwners(bytes, 2, 16).forEach((owner, i) => {
      held[owner] = (held[owner] as number) + (bytes[i] as number)
    })
    expect(Math.abs((held[0] as number) - (held[1] as number))).toBeLessThanOrEqual(16 + 10)
  })
})
