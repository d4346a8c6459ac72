import { expect, test } from 'bun:test'
import { ncclCheck } from './nccl-check.ts'

const library = (version: string | null) => ({ name: 'libnccl.so.2', version })

test.each([
  ['2.30.0', 'ok', null],
  ['2.32.3', 'ok', null],
  ['3.0.1', 'ok', null],
  [
    '2.29.9',
    'note',
    /work where each rank has a GPU of its own; where ranks share one they need 2\.30 or newer/,
  ],
  ['2.18.1', 'note', /where ranks share one they need 2\.30/],
  [
    '2.17.1',
    'absent',
    /^too old: .*--broadcast nccl.* and updates of several hosts.* need 2\.18 or newer/,
  ],
  ['2.8.4', 'absent', /need 2\.18 or newer/],
  ['1.99.0', 'absent', /need 2\.18 or newer/],
] as const)('NCCL %s: %s', (version, state, fix) => {
  const check = ncclCheck(library(version))
  expect(check).toMatchObject({ name: 'NCCL', state, found: `libnccl.so.2 opens: ${version}` })
  if (fix === null) expect(check.fix).toBeUndefined()
  else expect(check.fix).toMatch(fix)
})

test('one that does not tell its version is of no use', () => {
  const found = 'libnccl.so.2 opens, but does not tell its version'
  expect(ncclCheck(library(null))).toMatchObject({ state: 'absent', found })
})

test('without one it is said what it is for', () => {
  const fix = expect.stringMatching(/^only needed for `ckpt serve --broadcast nccl`/)
  expect(ncclCheck(null)).toMatchObject({ state: 'absent', found: 'no libnccl.so.2', fix })
})
