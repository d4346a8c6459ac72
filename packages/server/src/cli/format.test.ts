import { expect, test } from 'bun:test'
import { formatTable, printable } from './format.ts'

test('a name cannot speak to the terminal', () => {
  const name = 'a\0b\n\x1b[31mred\x9b'
  expect(printable(name)).not.toMatch(/\p{Cc}/u)
  expect(printable('größe.weight')).toBe('größe.weight')
  expect(formatTable([['tensor'], [name]]).split('\n')).toHaveLength(2)
})
