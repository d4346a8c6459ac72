import { expect, test } from 'bun:test'
import { dialectOfVersion } from './worker-version.ts'

test.each([
  ['0.1.1', 'D1'],
  ['0.1.12', 'D1'],
  ['0.2.0', 'D1'],
  ['0.2.1', 'D2'],
  ['0.2.2', 'D3'],
  ['0.3.4', 'D3'],
  ['0.4.0', 'D4'],
  ['0.4.2', 'D4'],
  // what nobody has looked at
  ['0.5.0', null],
  ['1.0.0', null],
  ['0.4', null],
  ['0.4.0rc1', null],
  ['0.2.1.dev3', null],
  ['', null],
  [null, null],
  [4, null],
] as const)('the worker of %p speaks %p', (version, dialect) => {
  expect(dialectOfVersion(version)).toBe(dialect)
})
