import { expect, test } from 'bun:test'
import { type EngineFlags, engineTargets } from './engine-targets.ts'

const flags = (more: Partial<EngineFlags>): EngineFlags => ({
  endpoints: ['http://localhost:19730'],
  sockets: [],
  engine: 'auto',
  parallelSize: 2,
  ...more,
})

test('one engine takes all ranks', () => {
  expect(engineTargets(flags({}), 2, 0)).toEqual([
    { url: 'http://localhost:19730', ranks: [0, 1], engine: 'auto' },
  ])
})

test('groups of ranks take the endpoints in order, {host} is this one', () => {
  const endpoints = ['http://{host}:8000/', 'http://b:8001']
  expect(engineTargets(flags({ endpoints, sockets: ['/a', '/b'] }), 4, 0)).toEqual([
    { url: 'http://localhost:8000', ranks: [0, 1], uds: '/a', engine: 'auto' },
    { url: 'http://b:8001', ranks: [2, 3], uds: '/b', engine: 'auto' },
  ])
})

test('one socket serves every endpoint', () => {
  const targets = engineTargets(
    flags({ endpoints: ['http://a', 'http://b'], sockets: ['/s'] }),
    4,
    0,
  )
  expect(targets.map((target) => target.uds)).toEqual(['/s', '/s'])
})

test.each([
  ['more groups than endpoints', flags({}), 4, /2 groups of 2.*endpoint for each group/],
  ['ranks that do not divide', flags({}), 3, /3 ranks.*does not fit.*ckpt serve --ranks \d+`/],
  ['too few ranks', flags({ endpoints: ['http://a', 'http://b'] }), 2, /2 ranks/],
  ['a socket too many', flags({ sockets: ['/a', '/b'] }), 2, /2 --uds for 1 --endpoint/],
  ['no URL', flags({ endpoints: ['localhost:8000'] }), 2, /not a URL/],
] as const)('%s is wrong usage', (_, given, ranks, message) => {
  expect(() => engineTargets(given, ranks, 0)).toThrow(message)
})

test('{host} needs what several hosts need', () => {
  const many = flags({ endpoints: ['http://{host}:1'] })
  expect(() => engineTargets(many, 2, 1)).toThrow(/several hosts are not supported yet/)
})
