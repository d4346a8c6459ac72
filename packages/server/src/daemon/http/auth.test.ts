import { afterEach, beforeEach, describe, expect, mock, test } from 'bun:test'
import crypto from 'node:crypto'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { resetSync } from '@logtape/logtape'
import { configureLogging } from '../log.ts'
import { readToken, tokenMatches } from './auth.ts'

let dir: string

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-token-'))
})

afterEach(() => rmSync(dir, { recursive: true, force: true }))

function token(text: string): Buffer {
  writeFileSync(join(dir, 'token'), text, { mode: 0o600 })
  return readToken(join(dir, 'token'))
}

describe('token file', () => {
  test('its only line counts', () => {
    expect(token(' secret\n')).toEqual(token('secret'))
    expect(token('secret2')).not.toEqual(token('secret'))
  })

  test.each(['', '\n', 'two words', 'two\nlines', 'schlüssel', 'x'.repeat(5000)])(
    '%p holds no token',
    (text) => {
      expect(() => token(text)).toThrow('must hold one token')
    },
  )

  test('one that every user can read is told of', () => {
    const lines: string[] = []
    configureLogging({ format: 'text', level: 'info', write: (line) => lines.push(line) })
    token('secret')
    expect(lines).toEqual([])
    chmodSync(join(dir, 'token'), 0o644)
    readToken(join(dir, 'token'))
    resetSync()
    expect(lines.join()).toContain('readable by every user')
  })

  test('one that is not there is named', () => {
    expect(() => readToken('/nowhere/token')).toThrow('--token-file /nowhere/token')
  })
})

test.each([
  ['Bearer secret', true],
  ['bearer secret', true],
  ['Bearer  secret', true],
  ['Bearer secret2', false],
  ['Bearer secre', false],
  ['Bearer secret x', false],
  ['Basic secret', false],
  ['secret', false],
  ['Bearer ', false],
  ['', false],
  [undefined, false],
])('%p matches: %p', (header, matches) => {
  expect(tokenMatches(token('secret'), header)).toBe(matches)
})

test('who sends no token matches no digest, not even that of nothing', () => {
  const nothing = crypto.createHash('sha256').digest()
  for (const header of [undefined, '', 'Bearer ']) expect(tokenMatches(nothing, header)).toBe(false)
})

test('each comparison goes over the whole of two digests in constant time, whatever was sent', () => {
  const expected = token('secret')
  const compare = mock(crypto.timingSafeEqual)
  // the real one, counted
  mock.module('node:crypto', () => ({ ...crypto, timingSafeEqual: compare }))
  try {
    const long = `Bearer ${'x'.repeat(5000)}`
    const sent = [
      'Bearer secret',
      'Bearer secre',
      'Bearer xecret',
      long,
      'Basic secret',
      '',
      undefined,
    ]
    const matching = sent.filter((header) => tokenMatches(expected, header))
    expect(matching).toEqual(['Bearer secret'])
    const lengths = compare.mock.calls.map((views) => views.map(({ byteLength }) => byteLength))
    expect(lengths).toEqual(sent.map(() => [32, 32]))
  } finally {
    mock.module('node:crypto', () => crypto)
  }
})
