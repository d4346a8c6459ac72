import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { AssertionError } from '../checkpoint/assert.ts'
import type { DirectCopy } from './direct-copy.ts'
import {
  cutAtRanges,
  type FetchPlan,
  FetchedRanges,
  fetchedBytes,
  GAP_BYTES,
  neededRanges,
  planFetches,
  SLOT_BYTES,
  type SourceRanges,
} from './fetch-plan.ts'

/** Bytes are looked at in units of these sizes, of which up to three or four lie in a gap that is read. */
const UNITS = [4000, 4096, 5000]

interface Instance {
  readonly unit: number
  readonly slotBytes: number
  readonly ownerNodes: readonly number[]
  /** Of each rank of each host. */
  readonly hosts: readonly (readonly (readonly DirectCopy[])[])[]
}

const tensor = fc.record({
  owner: fc.nat(7),
  kind: fc.constantFrom('rows', 'columns', 'replica', 'expert'),
  rows: fc.integer({ min: 1, max: 9 }),
  width: fc.integer({ min: 1, max: 14 }),
  gap: fc.nat(7),
})
const draws = fc.record({
  unit: fc.constantFrom(...UNITS),
  slot: fc.integer({ min: 1, max: 40 }),
  ownerNodes: fc.array(fc.nat(3), { minLength: 1, maxLength: 8 }),
  hostCount: fc.integer({ min: 1, max: 4 }),
  rankCount: fc.integer({ min: 1, max: 8 }),
  acrossHosts: fc.boolean(),
  tensors: fc.array(tensor, { minLength: 1, maxLength: 16 }),
})
type Draws = typeof draws extends fc.Arbitrary<infer T> ? T : never

/** What rank `rank` of `count` takes of a tensor that starts at unit `start`. */
function sliceOf(
  { kind, rows, width, owner }: Draws['tensors'][number],
  index: number,
  start: number,
  rank: number,
  count: number,
) {
  const part = (size: number) => {
    const begin = Math.floor((size * rank) / count)
    return { begin, size: Math.floor((size * (rank + 1)) / count) - begin }
  }
  const whole = { owner, source: start, width: rows * width, height: 1, pitch: rows * width }
  if (kind === 'replica') return whole
  if (kind === 'expert') return index % count === rank ? whole : { ...whole, width: 0 }
  if (kind === 'rows') {
    const { begin, size } = part(rows)
    return { ...whole, source: start + begin * width, width: size * width, pitch: size * width }
  }
  const { begin, size } = part(width)
  return { ...whole, source: start + begin, width: size, height: rows, pitch: width }
}

const instances = draws.map((drawn): Instance => {
  const { unit, ownerNodes, hostCount, rankCount, acrossHosts, tensors } = drawn
  const ends = ownerNodes.map(() => 0)
  const placed = tensors.map((one) => {
    const owner = one.owner % ownerNodes.length
    const start = ends[owner]! + one.gap
    ends[owner] = start + one.rows * one.width
    return { ...one, owner, start }
  })
  const copiesOf = (rank: number, count: number) => {
    let end = 0
    return placed.flatMap((one, index): DirectCopy[] => {
      const { owner, source, width, height, pitch } = sliceOf(one, index, one.start, rank, count)
      if (width === 0) return []
      const destination = end
      end += (width + 1) * height
      const bytes = {
        source: source * unit,
        sourcePitch: pitch * unit,
        destination: destination * unit,
        destinationPitch: (width + 1) * unit,
        width: width * unit,
      }
      return [{ owner, allocation: index % 2, height, ...bytes }]
    })
  }
  const perHost = Math.max(1, Math.floor(rankCount / hostCount))
  const hosts = Array.from({ length: hostCount }, (_, host) => {
    return Array.from({ length: perHost }, (__, local) => {
      return acrossHosts
        ? copiesOf(host * perHost + local, hostCount * perHost)
        : copiesOf(local, perHost)
    })
  })
  return { unit, slotBytes: drawn.slot * unit, ownerNodes, hosts }
})

interface HostPlan {
  readonly instance: Instance
  readonly node: number
  /** Of its ranks, of what has to be read. */
  readonly remote: readonly (readonly DirectCopy[])[]
  readonly plan: FetchPlan | null
}

/** The plan of each host of a random instance. */
function checkHosts(check: (host: HostPlan) => void, inputs = instances): void {
  const property = fc.property(inputs, (instance) => {
    const { ownerNodes, slotBytes } = instance
    for (const [node, ranks] of instance.hosts.entries()) {
      const isFetched = (owner: number) => ownerNodes[owner] !== node
      const remote = ranks.map((copies) => copies.filter(({ owner }) => isFetched(owner)))
      const needs = ranks.map((copies) => neededRanges(copies, isFetched))
      check({ instance, node, remote, plan: planFetches(node, ownerNodes, needs, slotBytes) })
    }
  })
  fc.assert(property, { numRuns: 300 })
}

/** Each unit that is moved: where it comes from, and where it goes. */
function moves(copies: readonly DirectCopy[], unit: number): string[] {
  const all = copies.flatMap((copy) => {
    return Array.from({ length: (copy.height * copy.width) / unit }, (_, k) => {
      const row = Math.floor((k * unit) / copy.width)
      const at = (k * unit) % copy.width
      const from = copy.source + row * copy.sourcePitch + at
      const to = copy.destination + row * copy.destinationPitch + at
      return `${copy.owner}:${from} ${copy.allocation}:${to}`
    })
  })
  return all.toSorted()
}

/** Each unit of the ranges, as often as it is in one. */
function unitsOf(ranges: Float64Array, unit: number): string[] {
  return rows(ranges).flatMap(([owner, begin, end]) => {
    return Array.from({ length: (end - begin) / unit }, (_, k) => `${owner}:${begin / unit + k}`)
  })
}

function rows(ranges: Float64Array): [number, number, number][] {
  return Array.from({ length: ranges.length / 3 }, (_, k) => {
    return [ranges[3 * k]!, ranges[3 * k + 1]!, ranges[3 * k + 2]!]
  })
}

/** The units that the copies need, and those with the gaps that are below GAP_BYTES. */
function neededUnits(copies: readonly DirectCopy[], unit: number) {
  const needed = new Map<number, Set<number>>()
  for (const { owner, source, sourcePitch, width, height } of copies) {
    const units = needed.get(owner) ?? new Set()
    needed.set(owner, units)
    for (let row = 0; row < height; row++) {
      for (let k = 0; k < width / unit; k++) units.add((source + row * sourcePitch) / unit + k)
    }
  }
  const union: string[] = []
  const withGaps: string[] = []
  for (const [owner, units] of needed) {
    const ascending = [...units].toSorted((a, b) => a - b)
    for (const [k, at] of ascending.entries()) {
      union.push(`${owner}:${at}`)
      const next = ascending[k + 1] ?? at + 1
      const end = (next - at - 1) * unit < GAP_BYTES ? next : at + 1
      for (let one = at; one < end; one++) withGaps.push(`${owner}:${one}`)
    }
  }
  return { union: union.toSorted(), withGaps: withGaps.toSorted() }
}

test('cut copies move the same bytes to the same places, each out of one range of its chunk', () => {
  checkHosts(({ instance: { unit }, remote, plan }) => {
    if (plan === null) return expect(remote.flat()).toEqual([])
    const ranges = new FetchedRanges(plan)
    for (const copies of remote) {
      const { copies: cut, starts } = cutAtRanges(copies, plan)
      expect(moves(cut, unit)).toEqual(moves(copies, unit))
      expect(starts.length).toBe(plan.chunks.length)
      expect([starts[0], starts.at(-1)]).toEqual([0, cut.length])
      for (let chunk = 0; chunk + 1 < starts.length; chunk++) {
        let last = [-1, -1]
        for (const copy of cut.slice(starts[chunk], starts[chunk + 1])) {
          const { owner, source, sourcePitch, width, height } = copy
          const range = ranges.rangeAt(owner, source)
          expect(ranges.chunkOf(range)).toBe(chunk)
          expect(source + (height - 1) * sourcePitch + width).toBeLessThanOrEqual(ranges.end(range))
          expect(owner > last[0]! || (owner === last[0] && source >= last[1]!)).toBe(true)
          last = [owner, source]
        }
      }
    }
  })
})

test('a host reads once what any of its ranks needs, and of the rest only short gaps', () => {
  let exact = 0
  let shared = 0
  checkHosts(({ instance: { unit, ownerNodes }, node, remote, plan }) => {
    const { union, withGaps } = neededUnits(remote.flat(), unit)
    if (plan === null) return expect(union).toEqual([])
    expect(unitsOf(plan.ranges, unit).toSorted()).toEqual(withGaps)
    const bytes = [...fetchedBytes(plan, ownerNodes)]
    expect(bytes.map(([from]) => from)).not.toContain(node)
    expect(bytes.reduce((sum, [, one]) => sum + one, 0)).toBe(withGaps.length * unit)
    if (union.length === withGaps.length) exact++
    const copied = remote.flat().reduce((sum, { width, height }) => sum + width * height, 0)
    if (copied > union.length * unit) shared++
  })
  expect(Math.min(exact, shared)).toBeGreaterThan(50)
})

test('the ranges of a chunk fit into a slot and are of owners of one host', () => {
  checkHosts(({ instance: { ownerNodes, slotBytes }, plan }) => {
    if (plan === null) return
    const all = rows(plan.ranges)
    const ranges = new FetchedRanges(plan)
    expect([plan.chunks[0], plan.chunks.at(-1)]).toEqual([0, all.length])
    for (let chunk = 0; chunk + 1 < plan.chunks.length; chunk++) {
      const begin = plan.chunks[chunk]!
      const end = plan.chunks[chunk + 1]!
      expect(end).toBeGreaterThan(begin)
      let filled = 0
      for (let range = begin; range < end; range++) {
        const [owner, from, to] = all[range]!
        expect(ranges.chunkOf(range)).toBe(chunk)
        expect([ranges.begin(range), ranges.end(range)]).toEqual([from, to])
        expect(ranges.offsetInSlot(range)).toBe(Math.ceil(filled / 256) * 256)
        filled = ranges.offsetInSlot(range) + to - from
        expect(ownerNodes[owner]).toBe(ownerNodes[all[begin]![0]])
        for (const at of [from, to - 1]) expect(ranges.rangeAt(owner, at)).toBe(range)
        const before = ranges.rangeAt(owner, from - 1)
        expect(before === -1 || before === range - 1).toBe(true)
      }
      expect(filled).toBeLessThanOrEqual(slotBytes)
    }
  })
})

test('each host begins with the owners of the next one', () => {
  checkHosts(({ instance: { ownerNodes }, node, plan }) => {
    const order = plan === null ? [] : rows(plan.ranges)
    const nodeCount = Math.max(node, ...ownerNodes) + 1
    const turns = order.map(([owner]) => (ownerNodes[owner]! - node + nodeCount) % nodeCount)
    const sorted = [...order.keys()].toSorted((a, b) => {
      return turns[a]! - turns[b]! || order[a]![0] - order[b]![0] || order[a]![1] - order[b]![1]
    })
    expect(sorted).toEqual([...order.keys()])
  })
  const all = Float64Array.from([0, 1, 2, 3].flatMap((owner) => [owner, 0, 100]))
  const firsts = [0, 1, 2, 3].map((node) => {
    const needs = Float64Array.from(
      rows(all)
        .filter(([owner]) => owner !== node)
        .flat(),
    )
    return planFetches(node, [0, 1, 2, 3], [needs])!.ranges[0]
  })
  expect(firsts).toEqual([1, 2, 3, 0])
})

const row = (source: number, width: number, height = 1, pitch = width): DirectCopy => {
  const destinationPitch = width
  const to = { allocation: 0, destination: source, destinationPitch }
  return { owner: 0, source, sourcePitch: pitch, width, height, ...to }
}
const need = (...copies: DirectCopy[]) => rows(neededRanges(copies, () => true))

test('rows and neighbours that are less than a gap apart are one range', () => {
  const far = 10 + GAP_BYTES
  expect(need(row(5, 10, 3, far - 1))).toEqual([[0, 5, 15 + 2 * (far - 1)]])
  expect(need(row(5, 10, 2, far))).toEqual([
    [0, 5, 15],
    [0, 5 + far, 15 + far],
  ])
  expect(need(row(far - 1, 7), row(0, 10))).toEqual([[0, 0, far + 6]])
  expect(need(row(far, 7), row(0, 10)).length).toBe(2)
  // a short one within a long one, and columns that lie between those of another copy
  expect(need(row(0, 3 * far), row(9, 1))).toEqual([[0, 0, 3 * far]])
  expect(need(row(0, far, 3, 2 * far), row(far, far, 3, 2 * far))).toEqual([[0, 0, 6 * far]])
  const owners = [0, 1].map((owner) => ({ ...row(0, 10), owner }))
  expect(rows(neededRanges(owners.toReversed(), () => true)).map(([owner]) => owner)).toEqual([
    0, 1,
  ])
  expect(rows(neededRanges(owners, (owner) => owner === 1))).toEqual([[1, 0, 10]])
})

test('so many far rows that they would be too many ranges are read with what lies between', () => {
  const pitch = 1 + GAP_BYTES
  expect(need(row(0, 1, 2 ** 16, pitch)).length).toBe(2 ** 16)
  expect(need(row(0, 1, 2 ** 16 + 1, pitch))).toEqual([[0, 0, 2 ** 16 * pitch + 1]])
  expect(need(row(0, 1, 2 ** 30, 5 * pitch))).toEqual([[0, 0, (2 ** 30 - 1) * 5 * pitch + 1]])
})

test('a range that is longer than a slot is cut, and its rows that lie in one part stay together', () => {
  const slotBytes = 1024
  const plan = planFetches(1, [0], [Float64Array.of(0, 100, 2500)], slotBytes)!
  const parts = [
    [0, 100, 1124],
    [0, 1124, 2148],
    [0, 2148, 2500],
  ]
  expect(rows(plan.ranges).map((range) => [...range])).toEqual(parts)
  expect([...plan.chunks]).toEqual([0, 1, 2, 3])
  const { copies, starts } = cutAtRanges([row(100, 200, 8, 300)], plan)
  expect(copies.map(({ source, width, height }) => [source, width, height])).toEqual([
    [100, 200, 3],
    [1000, 124, 1],
    [1124, 76, 1],
    [1300, 200, 3],
    [2200, 200, 1],
  ])
  expect([...starts]).toEqual([0, 2, 4, 5])
})

test('ranges that just fit into a slot are one chunk, each from a multiple of 256 bytes on', () => {
  const chunksOf = (slotBytes: number, ...needs: number[]) => {
    return [...planFetches(1, [0, 0], [Float64Array.from(needs)], slotBytes)!.chunks]
  }
  expect(chunksOf(1024, 0, 0, 500, 1, 50, 562)).toEqual([0, 2])
  expect(chunksOf(1023, 0, 0, 500, 1, 50, 562)).toEqual([0, 1, 2])
})

test('a byte is looked for among the ranges of its owner only', () => {
  const ranges = new FetchedRanges(planFetches(1, [0, 0], [Float64Array.of(0, 0, 9, 1, 5, 30)])!)
  const found = [0, 8, 9, 20].map((offset) => [0, 1, 2].map((one) => ranges.rangeAt(one, offset)))
  expect(found).toEqual([
    [0, -1, -1],
    [0, 1, -1],
    [-1, 1, -1],
    [-1, 1, -1],
  ])
})

test('what was not read cannot be copied', () => {
  const plan = planFetches(1, [0, 0], [Float64Array.of(0, 0, 100, 0, 90_000, 90_100)])!
  const missing = [row(50, 51), row(100, 1), row(80, 40, 2, 89_980), { ...row(0, 1), owner: 1 }]
  for (const copy of missing) expect(() => cutAtRanges([copy], plan)).toThrow(AssertionError)
  expect(cutAtRanges([], plan)).toEqual({ copies: [], starts: new Uint32Array(2) })
  expect(planFetches(1, [0], [new Float64Array(0)])).toBeNull()
  expect(() => planFetches(1, [0], [Float64Array.of(1, 0, 9)])).toThrow(AssertionError)
})

test('140,000 tensors are planned for eight ranks within two seconds', () => {
  const bytes = 4 * 2 ** 20
  const copiesOf = (rank: number) => {
    return Array.from({ length: 140_000 }, (_, index): DirectCopy[] => {
      const source = Math.floor(index / 32) * (bytes + 512)
      const at = { owner: index % 32, allocation: 0, destination: index * bytes }
      const part = bytes / 8
      const one = { ...at, source, sourcePitch: part, destinationPitch: part, height: 1 }
      if (index % 10 > 1) return index % 8 === rank ? [{ ...one, width: bytes }] : []
      if (index % 10 === 1) return [{ ...one, source: source + rank * part, width: part }]
      const width = 2048
      const strided = { sourcePitch: 8 * width, destinationPitch: width, width, height: 256 }
      return [{ ...one, source: source + rank * width, ...strided }]
    }).flat()
  }
  const ranks = Array.from({ length: 8 }, (_, rank) => copiesOf(rank))
  const ownerNodes = Array.from({ length: 32 }, (_, owner) => Math.floor(owner / 8))
  const isFetched = (owner: number) => ownerNodes[owner] !== 0
  const begin = performance.now()
  const needs: SourceRanges[] = ranks.map((copies) => neededRanges(copies, isFetched))
  const plan = planFetches(0, ownerNodes, needs)!
  const remote = ranks[0]!.filter(({ owner }) => isFetched(owner))
  const { copies } = cutAtRanges(remote, plan)
  expect(performance.now() - begin).toBeLessThan(2000)
  expect(copies.length).toBeGreaterThanOrEqual(remote.length)
  expect(plan.slotBytes).toBe(SLOT_BYTES)
})
