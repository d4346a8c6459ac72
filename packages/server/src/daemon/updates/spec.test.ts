import { expect, test } from 'bun:test'
import { CkptError, type ErrorCode, type UpdateRequest } from '@ckpt/core'
import { daemonOptions, failure } from '../registry/testing/fixture.ts'
import type { RankHandle } from '../rank/handle.ts'
import { makeSpec } from './spec.ts'

const URL_ = 'http://127.0.0.1:19730/collective_rpc'

function spec(request: UpdateRequest, allowedEngines: readonly string[] | null = null) {
  const options = daemonOptions('/nowhere', { allowedEngines })
  const links = options.ranks.map((rank) => ({ rank }) as RankHandle)
  const all = () => links.map(({ rank }) => rank.rank)
  return makeSpec('m', request, options, { links, all, lost: () => null })
}

test('the defaults are those of checkpoint-engine, and nobody is paused', () => {
  expect(spec({ update_id: 'u' })).toEqual({
    id: 'u',
    checkpoint: 'm',
    ranks: [0, 1],
    engines: [],
    leftOut: [],
    timeoutMs: 300_000,
    openMs: 60_000,
    pauseMs: 60_000,
    pause: null,
    mode: 'auto',
    method: 'update_weights_from_ipc',
    weightVersion: null,
    version: null,
  })
  expect(spec({}).id).not.toBe(spec({}).id)
})

test('of survivors the engines of lost ranks are left out, of all ranks they are an error', () => {
  const options = daemonOptions('/nowhere')
  const links = [{ rank: options.ranks[0] } as RankHandle]
  const failure = { code: 'node_lost', message: 'node 1 is lost' } as const
  const ranks = {
    links,
    all: (require: 'all' | 'survivors') => {
      if (require === 'all') throw CkptError.from(failure)
      return [0]
    },
    lost: (rank: number) => (rank === 1 ? { node: 1, failure } : null),
  }
  const engines = [
    { url: URL_, ranks: [0] },
    { url: 'http://127.0.0.1:2', ranks: [1] },
  ]
  const told = makeSpec('m', { require: 'survivors', engines }, options, ranks as never)
  expect(told.ranks).toEqual([0])
  expect(told.engines.map(({ url }) => url)).toEqual([URL_])
  expect(told.leftOut).toHaveLength(1)
  expect(() => makeSpec('m', { engines }, options, ranks as never)).toThrow('node 1 is lost')
  // an engine of all ranks has those that are lost too, and nothing is left of ranks that are all lost
  for (const request of [{ update_url: URL_ }, { ranks: [1] }]) {
    const asked = { require: 'survivors', ...request } as const
    expect(() => makeSpec('m', asked, options, ranks as never)).toThrow('node 1 is lost')
  }
})

test('the old fields are the form with one engine; no ranks means all', () => {
  const place = { key: 'http://127.0.0.1:19730', url: URL_, uds: null, node: 0 }
  const engine = { ...place, kind: null, ranks: [0, 1] }
  expect(spec({ update_url: URL_ }).engines).toEqual([engine])
  expect(spec({ update_url: URL_, inference_group_ranks: [1], engine: 'vllm' }).engines).toEqual([
    { ...engine, ranks: [1], kind: 'vllm', native: 'may' },
  ])
  expect(spec({ engines: [{ url: URL_, ranks: [1, 0] }] }).engines).toEqual([
    { ...engine, ranks: [1, 0] },
  ])
  expect(spec({ update_url: null, uds: '/tmp/x' }).engines).toEqual([])
})

test("vllm's own transfer may bring an engine of one rank the weights, unless something else is asked for", () => {
  const native = (request: UpdateRequest) =>
    spec({ update_url: URL_, inference_group_ranks: [0], ...request }).engines[0]?.native
  expect(native({})).toBe('may')
  expect(native({ engine: 'vllm', mode: 'pipelined' })).toBe('may')
  expect(native({ engine_method: 'native-ipc' })).toBe('asked')
  expect(native({ engine_method: 'update_weights_from_ipc' })).toBeUndefined()
  expect(native({ mode: 'direct' })).toBeUndefined()
  expect(native({ engine: 'sglang' })).toBeUndefined()
  expect(native({ inference_group_ranks: [0, 1] })).toBeUndefined()
})

test('every route of one server behind one socket is the same engine', () => {
  const url = 'http://localhost/api/update_weights_from_ipc'
  const [engine] = spec({ update_url: url, uds: '/run/engine.sock' }).engines
  expect(engine?.key).toBe('http://localhost/api unix:/run/engine.sock')
})

const REFUSED: [UpdateRequest, ErrorCode, string][] = [
  [{ ranks: [2] }, 'bad_request', 'rank 2'],
  [{ update_url: URL_, engines: [{ url: URL_, ranks: [0] }] }, 'bad_request', 'exclude'],
  [{ ranks: [0], update_url: URL_, inference_group_ranks: [1] }, 'bad_request', 'rank 1'],
  [{ ranks: [0, 0], update_url: URL_ }, 'bad_request', 'rank 0 twice'],
  [{ update_url: null, inference_group_ranks: [0] }, 'bad_request', 'inference_group_ranks'],
  [
    {
      engines: [
        { url: `${URL_}?1`, ranks: [0] },
        { url: `${URL_}?2`, ranks: [0] },
      ],
    },
    'bad_request',
    'rank 0 belongs to',
  ],
  [
    {
      engines: [
        { url: URL_, ranks: [0] },
        { url: URL_, ranks: [] },
      ],
    },
    'bad_request',
    'needs them',
  ],
  [{ update_url: 'ftp://127.0.0.1/x' }, 'bad_request', 'ftp'],
  [{ update_url: 'nonsense' }, 'bad_request', 'nonsense'],
  [{ update_url: 'http://10.0.0.1:80/collective_rpc' }, 'engine_not_allowed', '10.0.0.1'],
  [{ update_url: 'http://127.0.0.1.evil.example/x' }, 'engine_not_allowed', 'evil'],
]

for (const [request, code, words] of REFUSED) {
  test(`${JSON.stringify(request)} is ${code}`, () => failure(() => spec(request), code, words))
}

test('an allow-list compares origins and whole path segments, and sockets by their path', async () => {
  const allowed = ['http://gpu-7:19730/api', 'unix:/run/a.sock', '/run/b.sock']
  const accepted = (update_url: string, uds?: string) => spec({ update_url, uds }, allowed).engines
  expect(accepted('http://gpu-7:19730/api/collective_rpc')).toHaveLength(1)
  expect(accepted('http://localhost/x', '/run/a.sock')).toHaveLength(1)
  expect(accepted('http://localhost/x', '/run/b.sock')).toHaveLength(1)
  for (const url of [
    'http://gpu-7:1973/api/collective_rpc',
    'http://gpu-7:19730/apix',
    'https://gpu-7:19730/api/x',
    'http://gpu-7:19730@elsewhere/api/x',
    'http://user:secret@gpu-7:19730/api/x',
    'http://127.0.0.1:19730/api/x',
  ]) {
    await failure(() => accepted(url), 'engine_not_allowed')
  }
  await failure(() => accepted('http://gpu-7:19730/api/x', '/run/c.sock'), 'engine_not_allowed')
})
