import { expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import { describeFaults, FAULTS, Faults, parseFault, strikes } from './faults.ts'

test('every kind of the table parses, with its suffixes', () => {
  for (const { kind, place } of FAULTS) {
    const text = `${kind}@${place === 'bucket' ? '3' : place}`
    const fault = parseFault(text, 4)
    expect(fault).toMatchObject({ kind, place, bucket: place === 'bucket' ? 3 : null, once: false })
    expect(parseFault(`${text}:once`, 4).once).toBe(true)
  }
  expect(parseFault('error@0:rank=1:once', 2)).toMatchObject({ rank: 1, once: true, bucket: 0 })
})

test('an unknown fault is refused with the list', () => {
  for (const text of [
    '',
    'error',
    'error@',
    'error@-1',
    'nonsense@3',
    'http-500@3',
    'hang@open:twice',
  ]) {
    expect(() => parseFault(text, 2)).toThrow(CkptError)
  }
  expect(() => parseFault('nonsense@3', 2)).toThrow('missing-device@open')
  expect(() => parseFault('error@3:rank=2', 2)).toThrow('rank 2')
  expect(() => parseFault('hang@open:rank=0', 2)).toThrow('rank 0')
  expect(describeFaults().split('\n')).toHaveLength(FAULTS.length + 3)
})

test('a fault strikes the last rank unless told otherwise, and once if it says so', () => {
  const faults = new Faults(['error@2', 'hang@post:rank=0:once', 'hang@pause:once'], 3)
  const first = faults.take('ring')
  expect(strikes(faults.ofRank(first, 2), 'error', 2)).toBe(true)
  expect(strikes(faults.ofRank(first, 2), 'error', 1)).toBe(false)
  expect(strikes(faults.ofRank(first, 1), 'error', 2)).toBe(false)
  expect(strikes(faults.ofRank(first, 0), 'hang', 'post')).toBe(true)
  const second = faults.take('ring')
  expect(second.map((fault) => fault.kind)).toEqual(['error'])
  expect([faults.takeOf('pause'), faults.takeOf('pause')]).toEqual([true, false])
})

test('a fault of direct updates waits for one', () => {
  const faults = new Faults(['error@0:direct:once', 'moved@open:once', 'hang@post:once'], 1)
  const kinds = (way: 'ring' | 'direct') => faults.take(way).map((fault) => fault.kind)
  expect([kinds('ring'), kinds('ring')]).toEqual([['hang'], []])
  expect([kinds('direct'), kinds('direct')]).toEqual([['error', 'moved'], []])
})
