import { expect, test } from 'bun:test'
import { buildTable, dtypeIndex, type PlanInput } from '@ckpt/core'
import { PlanShelf } from './plans.ts'

const INPUT: PlanInput = {
  table: buildTable([
    { name: 'w', dtype: dtypeIndex('U8'), shape: [1024], bytes: 1024, owner: 0, offset: 0 },
  ]),
  sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(1024) }],
  ownerRanks: [[0]],
  mode: 'serial',
  ringBytes: 2 ** 20,
  bucketBytes: 2 ** 20,
  segmentBytes: 2 ** 20,
}

test('only the plans used last are kept: another layout in every update does not grow', () => {
  const shelf = new PlanShelf()
  for (const key of ['a', 'b', 'c', 'd']) shelf.make(key, INPUT)
  const a = shelf.get('a')
  for (const key of ['e', 'f']) shelf.make(key, INPUT)
  expect(shelf.get('a')).toBe(a)
  const held = ['a', 'b', 'c', 'd', 'e', 'f'].filter((key) => shelf.get(key) !== null)
  expect(held).toEqual(['a', 'd', 'e', 'f'])
})
