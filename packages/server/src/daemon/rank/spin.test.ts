import { expect, test } from 'bun:test'
import { ranksSpin } from './spin.ts'

test('ranks spin where each has four processors, or as it was asked for', () => {
  expect(ranksSpin('auto', 1, 4)).toBe(true)
  expect(ranksSpin('auto', 1, 3)).toBe(false)
  expect(ranksSpin('auto', 8, 32)).toBe(true)
  expect(ranksSpin('auto', 8, 31)).toBe(false)
  expect(ranksSpin('on', 8, 1)).toBe(true)
  expect(ranksSpin('off', 1, 128)).toBe(false)
})
