import { expect, test } from 'bun:test'
import { buildTable, CkptError } from '@ckpt/core'
import { layoutColumns, LayoutShelf, readColumns } from './layouts.ts'

function columnsOf(bytes: number) {
  const row = { name: 'w', dtype: 0, shape: [bytes], bytes, owner: 0, offset: 0 }
  const source = { starts: Float64Array.of(0), bytes: Float64Array.of(bytes) }
  return layoutColumns(buildTable([row]), [source])
}

test('what was told comes back, and nothing else is taken', () => {
  const told = columnsOf(8)
  expect(readColumns(told.columns).table.names).toEqual(['w'])
  expect(told.key).toBe(columnsOf(8).key)
  expect(told.key).not.toBe(columnsOf(16).key)
  for (const columns of [columnsOf(16).columns, told.columns.slice(1), new Uint8Array(0)]) {
    expect(() => new LayoutShelf().keep({ key: told.key, columns })).toThrow(CkptError)
  }
})

test('of more layouts than it keeps the one that was not used for longest goes', () => {
  const shelf = new LayoutShelf()
  const all = Array.from({ length: 9 }, (_, i) => columnsOf(8 * (i + 1)))
  for (const told of all.slice(0, 8)) shelf.keep(told)
  expect(shelf.get(all[0]!.key)).toBeDefined()
  shelf.keep(all[8]!)
  expect(shelf.get(all[0]!.key)).toBeDefined()
  expect(shelf.get(all[1]!.key)).toBeUndefined()
})
