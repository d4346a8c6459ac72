import { expect, test } from 'bun:test'
import {
  buildTable,
  type DirectPlan,
  dtypeIndex,
  encodePlacementMap,
  type FetchPlan,
  type LookAnswer,
  planFetches,
} from '@ckpt/core'
import type { Library } from '@ckpt/cuda'
import { DirectPlans } from './direct-plans.ts'

const ENGINE = 'http://engine'
const ONE = { sizes: [1, 1, 1], sourceStrides: [0, 0, 0], destinationStrides: [0, 0, 0] }
const COPY = { tensor: 0, source: 0, allocation: 0, destination: 0, run: 8, ...ONE }
const TENSOR = { name: 'w', dtype: 'uint8', shape: [8] }
const MAP = encodePlacementMap([TENSOR], [64], [COPY])
const ROW = { name: 'w', dtype: dtypeIndex('U8'), shape: [8], bytes: 8, owner: 0, offset: 0 }
const LAYOUT = {
  table: buildTable([ROW]),
  sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(8) }],
}

function answer(encodedMap: Uint8Array, changed: Partial<LookAnswer> = {}): LookAnswer {
  const map = new Bun.CryptoHasher('sha256').update(encodedMap).digest('hex')
  return { generation: 'g', handles: ['00'], map, encodedMap, ...changed }
}

const NOTHING = new Uint8Array(0)

test('a map is kept for its engine, and a plan for its layout', () => {
  const plans = new DirectPlans()
  plans.keep('layout', LAYOUT)
  const first = answer(MAP)
  expect(plans.take(ENGINE, first)).toBeNull()
  const plan = plans.plan(ENGINE, 'layout', [false])
  expect(plan).toMatchObject({ bytes: 8, fetched: [] })
  expect(plans.take(ENGINE, { ...first, encodedMap: NOTHING })).toBeNull()
  expect(plans.plan(ENGINE, 'layout', [false])).toBe(plan)
  // another one of a daemon that has to read it
  expect(plans.plan(ENGINE, 'layout', [true])).toMatchObject({
    copies: [],
    fetched: [{ owner: 0 }],
  })
})

test('memory that is forgotten is not known until the worker says it again; the map is', () => {
  const plans = new DirectPlans()
  const first = answer(MAP)
  plans.take(ENGINE, first)
  const allocations = [{ handle: '00', bytes: 64 }]
  expect(plans.memory(ENGINE)).toEqual({ generation: 'g', allocations })
  plans.forgetMemory(ENGINE)
  plans.forgetMemory('another')
  expect([plans.memory(ENGINE), plans.map(ENGINE)?.digest]).toEqual([null, first.map])
  plans.take(ENGINE, { ...first, encodedMap: NOTHING })
  expect(plans.memory(ENGINE)).toEqual({ generation: 'g', allocations })
})

test.each([
  ['none', answer(Uint8Array.of(1, 2, 3)), 'cannot be used'],
  ['of another digest', answer(MAP, { map: 'ff' }), 'not the one that its digest names'],
  ['not sent', answer(NOTHING, { map: 'ff' }), 'did not send'],
  ['with more allocations', answer(MAP, { handles: [] }), '1 allocations, but 0 handles'],
])('a map that is %s is of no use, and the reason is told', (_, look, words) => {
  const plans = new DirectPlans()
  expect(plans.take(ENGINE, look)?.reason).toContain(words)
})

test('pinned memory is kept while it is large enough, of each kind', () => {
  const held = new Map<number, number>()
  let next = 1
  const library = {
    bufferAlloc(bytes: number) {
      held.set(next, bytes)
      return next++
    },
    bufferFree: (buffer: number) => void held.delete(buffer),
  } as unknown as Library
  const told: (readonly number[])[] = []
  const plans = new DirectPlans((buffers) => told.push(buffers))
  const slots = plans.slots(library, 100, -1)
  expect([plans.staging(library, 50, -1), plans.slots(library, 60, -1)]).toEqual([2, slots])
  expect(plans.slots(library, 200, -1)).toBe(3)
  expect([...held]).toEqual([
    [2, 50],
    [3, 200],
  ])
  expect(told).toEqual([[1], [2, 1], [2], [2, 3]])
  plans.free(library)
  expect(held.size).toBe(0)
  expect(told.at(-1)).toEqual([])
})

test('pinned memory that cannot be had is not taken for what was there before', () => {
  const held = new Set<number>()
  let next = 1
  const library = {
    bufferAlloc(bytes: number) {
      if (bytes > 100) throw new Error('there is not so much')
      held.add(next)
      return next++
    },
    bufferFree: (buffer: number) => void held.delete(buffer),
  } as unknown as Library
  const plans = new DirectPlans()
  plans.slots(library, 100, -1)
  expect(() => plans.slots(library, 101, -1)).toThrow('not so much')
  const slots = plans.slots(library, 100, -1)
  expect([...held]).toEqual([slots])
})

test('what was cut for a fetch is kept until that or the plan is another', () => {
  const plans = new DirectPlans()
  plans.keep('layout', LAYOUT)
  plans.take(ENGINE, answer(MAP))
  const plan = plans.plan(ENGINE, 'layout', [true]) as DirectPlan
  const needs = plans.needs(plan)
  expect([...needs]).toEqual([0, 0, 8])
  expect(plans.needs(plan)).toBe(needs)
  const fetch = planFetches(1, [0], [needs]) as FetchPlan
  const cut = plans.cut(plan, fetch)
  expect(plans.cut(plan, structuredClone(fetch))).toBe(cut)
  const other = planFetches(1, [0], [needs], 4) as FetchPlan
  expect(plans.cut(plan, other).copies).toHaveLength(2)
})
