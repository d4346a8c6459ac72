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
  expect(engineTargets(flags({}), 2, 1)).toEqual([
    { url: 'http://localhost:19730', ranks: [0, 1], engine: 'auto' },
  ])
})

test('groups of ranks take the endpoints in order, {host} is this one', () => {
  const endpoints = ['http://{host}:8000/', 'http://b:8001']
  expect(engineTargets(flags({ endpoints, sockets: ['/a', '/b'] }), 4, 1)).toEqual([
    { url: 'http://localhost:8000', ranks: [0, 1], uds: '/a', engine: 'auto' },
    { url: 'http://b:8001', ranks: [2, 3], uds: '/b', engine: 'auto' },
  ])
})

test('one socket serves every endpoint', () => {
  const targets = engineTargets(
    flags({ endpoints: ['http://a', 'http://b'], sockets: ['/s'] }),
    4,
    1,
  )
  expect(targets.map((target) => target.uds)).toEqual(['/s', '/s'])
})

test.each([
  ['more groups than endpoints', flags({}), 4, /2 groups of 2.*endpoint for each group/],
  ['ranks that do not divide', flags({}), 3, /3 ranks.*does not fit.*ckpt serve --ranks \d+`/],
  [
    'ranks of one group for two endpoints',
    flags({ endpoints: ['http://a', 'http://b'] }),
    2,
    /2 ranks, 1 group of 2, not 2 --endpoint/,
  ],
  ['too few ranks', flags({ endpoints: ['http://a', 'http://b'] }), 2, /2 ranks/],
  ['a socket too many', flags({ sockets: ['/a', '/b'] }), 2, /2 --uds for 1 --endpoint/],
  ['no URL', flags({ endpoints: ['localhost:8000'] }), 2, /not a URL/],
] as const)('%s is wrong usage', (_, given, ranks, message) => {
  expect(() => engineTargets(given, ranks, 1)).toThrow(message)
})

test('of several hosts each has the engines of one, unless an endpoint is for each group', () => {
  const host = flags({ endpoints: ['http://{host}:1', 'http://127.0.0.1:2'], sockets: [] })
  const told = engineTargets(host, 8, 2).map(({ url, ranks }) => [url, ranks])
  expect(told).toEqual([
    ['http://localhost:1', [0, 1]],
    ['http://127.0.0.1:2', [2, 3]],
    ['http://localhost:1', [4, 5]],
    ['http://127.0.0.1:2', [6, 7]],
  ])
  const apart = flags({ endpoints: ['http://a', 'http://b'] })
  expect(engineTargets(apart, 4, 2).map(({ url }) => url)).toEqual(['http://a', 'http://b'])
  // another host's engine is one engine
  expect(() => engineTargets(flags({ endpoints: ['http://a'] }), 4, 2)).toThrow(/for each group/)
})
