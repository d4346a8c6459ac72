import { describe, expect, test } from 'bun:test'
import { CkptError, type UpdateRequest } from '@ckpt/core'
import { createApp } from './app.ts'
import { RankCalls } from './rank-sockets.ts'
import { type FakeDaemon, fakeDaemon, UNIX } from './testing/fake-daemon.ts'

const WINDOW_MS = 60
/** What checkpoint-engine's client sends to a rank that is not the first of its group. */
const FOLLOWER: UpdateRequest = {
  ranks: [],
  update_url: null,
  inference_group_ranks: [],
  timeout: 300,
  uds: null,
}

function leader(url: string, ranks: number[], more: UpdateRequest = {}): UpdateRequest {
  return { ...FOLLOWER, update_url: url, inference_group_ranks: ranks, ...more }
}

/** Calls the route through the socket of a rank. */
function rankClient(daemon: FakeDaemon) {
  const app = createApp(daemon)
  return async (rank: number, path: string, body?: unknown) => {
    const listener = { transport: 'unix', token: null, rank } as const
    const init = { method: 'POST', body: body === undefined ? undefined : JSON.stringify(body) }
    const response = await app.request(`/v1/checkpoints/${path}`, init, { listener, server: null })
    return { status: response.status, body: (await response.json()) as any }
  }
}

describe('updates', () => {
  test('the calls of all ranks are one update whose report all of them get', async () => {
    const daemon = fakeDaemon([0, 1, 2, 3], 60_000)
    const call = rankClient(daemon)
    const first = leader('http://a/collective_rpc', [0, 1], { timeout: 20 })
    const third = leader('http://b/collective_rpc', [2, 3], { uds: '/b.sock', timeout: 500 })
    const answers = [
      call(3, 'llama/update', FOLLOWER),
      call(2, 'llama/update', third),
      call(1, 'llama/update', FOLLOWER),
    ]
    await Bun.sleep(20)
    expect(daemon.started).toHaveLength(0)
    answers.push(call(0, 'llama/update', first))
    await Bun.sleep(20)
    expect(daemon.started).toHaveLength(1)
    const { request } = daemon.started[0]!
    expect(request.engines).toEqual([
      { url: 'http://b/collective_rpc', ranks: [2, 3], uds: '/b.sock' },
      { url: 'http://a/collective_rpc', ranks: [0, 1] },
    ])
    expect(request).toMatchObject({ timeout: 500, ranks: [] })
    expect(request).not.toHaveProperty('update_url')
    expect(request).not.toHaveProperty('inference_group_ranks')
    expect(request).not.toHaveProperty('uds')
    daemon.started[0]!.finish()
    for (const { status, body } of await Promise.all(answers)) {
      expect({ status, id: body.update_id }).toEqual({ status: 200, id: 'u0' })
    }
  })

  test('its failure is the answer to all of them', async () => {
    const daemon = fakeDaemon([0, 1], 60_000)
    const call = rankClient(daemon)
    const answers = [0, 1].map((rank) => call(rank, 'llama/update', leader('http://a', [])))
    await Bun.sleep(10)
    daemon.started[0]!.fail(new CkptError('engine_failed', 'no'))
    expect((await Promise.all(answers)).map(({ status }) => status)).toEqual([502, 502])
  })

  test('what start throws is the answer to all of them', async () => {
    const daemon = fakeDaemon([0, 1], 60_000)
    daemon.refusal = new CkptError('checkpoint_not_found', 'no')
    const call = rankClient(daemon)
    const answers = await Promise.all([0, 1].map((rank) => call(rank, 'llama/update', FOLLOWER)))
    expect(answers.map(({ status }) => status)).toEqual([404, 404])
  })

  test('an engine that every rank names is contacted once, for all ranks', async () => {
    const daemon = fakeDaemon([0, 1, 2], 60_000)
    const calls = rankCalls(daemon, [0, 1, 2])
    for (const rank of [0, 1, 2])
      calls.update('llama', leader('http://a', []), rank).catch(() => {})
    expect(daemon.started[0]?.request.engines).toEqual([{ url: 'http://a', ranks: [0, 1, 2] }])
  })

  test('engines that nobody gives ranks have those up to the next engine', async () => {
    const daemon = fakeDaemon([0, 1, 2, 3, 4], 60_000)
    const calls = rankCalls(daemon, [0, 1, 2, 3, 4])
    const requests = [leader('http://a', []), FOLLOWER, leader('http://b', []), FOLLOWER]
    requests.push(leader('http://c', [4]))
    for (const [rank, request] of requests.entries()) {
      calls.update('llama', request, rank).catch(() => {})
    }
    expect(daemon.started[0]?.request.engines).toEqual([
      { url: 'http://a', ranks: [0, 1] },
      { url: 'http://b', ranks: [2, 3] },
      { url: 'http://c', ranks: [4] },
    ])
  })

  test('with ranks, only those are waited for, and an empty group means them', async () => {
    const daemon = fakeDaemon([0, 1, 2, 3], 60_000)
    const calls = rankCalls(daemon, [0, 1, 2, 3])
    const body = { ...FOLLOWER, ranks: [2, 1] }
    const others = calls.update('llama', body, 0)
    const member = calls.update('llama', body, 1)
    expect(daemon.started).toHaveLength(0)
    const last = calls.update('llama', { ...body, update_url: 'http://a' }, 2)
    expect(daemon.started[0]?.request.engines).toEqual([{ url: 'http://a', ranks: [2, 1] }])
    // a rank outside of the group that comes late gets the same answer
    const late = await calls.update('llama', body, 3)
    for (const call of [others, member, last]) expect((await call).id).toBe(late.id)
    expect(daemon.started).toHaveLength(1)
  })

  test('different names and different ranks are different updates', async () => {
    const daemon = fakeDaemon([0, 1], 60_000)
    const calls = rankCalls(daemon, [0, 1])
    calls.update('a', leader('http://a', []), 0).catch(() => {})
    calls.update('b', leader('http://a', []), 1).catch(() => {})
    calls.update('a', { ...leader('http://a', []), ranks: [0] }, 0).catch(() => {})
    expect(daemon.started.map(({ name, request }) => [name, request.ranks])).toEqual([['a', [0]]])
    calls.close(new CkptError('shutting_down', 'over'))
  })

  test('the second call of a rank is the next update', async () => {
    const daemon = fakeDaemon([0, 1], 60_000)
    const calls = rankCalls(daemon, [0, 1])
    for (let round = 0; round < 3; round++) {
      const answers = [0, 1].map((rank) => calls.update('llama', leader('http://a', []), rank))
      const ids = (await Promise.all(answers)).map(({ id }) => id)
      expect(ids).toEqual([`u${round}`, `u${round}`])
    }
    expect(daemon.started).toHaveLength(3)
  })

  test('a rank that asks for something else while it waits opens another round', async () => {
    const daemon = fakeDaemon([0, 1], 60_000)
    const calls = rankCalls(daemon, [0, 1])
    const retried = [leader('http://a', []), leader('http://a', []), leader('http://c', [])]
    const [one, same, other] = retried.map((request) => calls.update('llama', request, 0))
    const follower = await calls.update('llama', FOLLOWER, 1)
    expect((await one!).id).toBe(follower.id)
    expect((await same!).id).toBe(follower.id)
    expect(daemon.started).toHaveLength(1)
    const second = await calls.update('llama', FOLLOWER, 1)
    expect((await other!).id).toBe(second.id)
    expect(daemon.started[1]?.request.engines).toEqual([{ url: 'http://c', ranks: [0, 1] }])
  })
})

describe('ranks that do not call', () => {
  test('after the window the update starts with the engines that were named', async () => {
    const daemon = fakeDaemon([0, 1, 2], WINDOW_MS)
    const calls = rankCalls(daemon, [0, 1, 2], WINDOW_MS)
    const answer = calls.update('llama', leader('http://a', []), 0)
    await Bun.sleep(WINDOW_MS / 2)
    calls.update('llama', FOLLOWER, 1).catch(() => {})
    await Bun.sleep(WINDOW_MS / 2 + 10)
    expect(daemon.started).toHaveLength(0) // the window counts from the last call
    const handle = await answer
    expect(daemon.started[0]?.request.engines).toEqual([{ url: 'http://a', ranks: [0, 1, 2] }])
    // the late one joins while it runs and after it has ended
    expect((await calls.update('llama', FOLLOWER, 2)).id).toBe(handle.id)
  })

  test('without an engine there is nobody to update: the missing ranks are named', async () => {
    const daemon = fakeDaemon([0, 1, 2, 3], WINDOW_MS)
    const calls = rankCalls(daemon, [0, 1, 2, 3], WINDOW_MS)
    const answers = [0, 2].map((rank) => calls.update('llama', FOLLOWER, rank))
    const [first] = await Promise.allSettled(answers)
    expect(first).toMatchObject({ status: 'rejected', reason: { code: 'update_timeout' } })
    expect((first as PromiseRejectedResult).reason.message).toStartWith('ranks 1, 3 did not call')
    expect(daemon.started).toHaveLength(0)
  })

  test('a late one with an engine of its own gets an update of its own', async () => {
    const daemon = fakeDaemon([0, 1], WINDOW_MS)
    const calls = rankCalls(daemon, [0, 1], WINDOW_MS)
    await calls.update('llama', leader('http://a', [0]), 0)
    const late = await calls.update('llama', leader('http://b', [1]), 1)
    expect(late.id).toBe('u1')
    expect(daemon.started[1]?.request).toEqual(leader('http://b', [1]))
  })

  test('after a new registration nobody is late any more', async () => {
    const daemon = fakeDaemon([0, 1], WINDOW_MS)
    const call = rankClient(daemon)
    const first = call(0, 'llama/update', leader('http://a', []))
    await Bun.sleep(WINDOW_MS * 2)
    daemon.started[0]!.finish()
    expect((await first).status).toBe(200)
    await call(0, 'llama/files', { files: ['/b'], replace: true })
    const follower = call(1, 'llama/update', FOLLOWER)
    const second = call(0, 'llama/update', leader('http://a', []))
    await Bun.sleep(10)
    expect(daemon.started).toHaveLength(2)
    daemon.started[1]!.finish()
    expect((await follower).body.update_id).toBe('u1')
    expect((await second).body.update_id).toBe('u1')
  })
})

describe('gather', () => {
  test('waits for all ranks, once', async () => {
    const daemon = fakeDaemon([0, 1], 60_000)
    const call = rankClient(daemon)
    const first = call(0, 'llama/gather-metas')
    await Bun.sleep(10)
    expect(daemon.calls).toEqual([])
    await call(1, 'llama/files', { files: ['/b'] })
    const answers = await Promise.all([first, call(1, 'llama/gather-metas')])
    expect(answers.map(({ body }) => body.digest)).toEqual(['d', 'd'])
    expect(daemon.calls).toEqual([
      ['register', 'llama', { files: ['/b'] }, 1],
      ['gather', 'llama'],
    ])
  })

  test('answers after the window in any case', async () => {
    const daemon = fakeDaemon([0, 1], WINDOW_MS)
    const call = rankClient(daemon)
    expect((await call(0, 'llama/gather-metas')).status).toBe(200)
    expect((await call(1, 'llama/gather-metas')).status).toBe(200)
    expect(daemon.calls).toHaveLength(1)
  })
})

test('a daemon that closes answers those that wait', async () => {
  const calls = rankCalls(fakeDaemon([0, 1], 60_000), [0, 1])
  const waiting = [calls.update('llama', FOLLOWER, 0), calls.gather('llama', 0)]
  calls.close(new CkptError('shutting_down', 'over'))
  for (const answer of await Promise.allSettled(waiting)) {
    expect(answer).toMatchObject({ status: 'rejected', reason: { code: 'shutting_down' } })
  }
})

function rankCalls(daemon: FakeDaemon, ranks: number[], windowMs = 60_000): RankCalls {
  const { registry, start } = daemon
  return new RankCalls({ ranks, windowMs, gather: async (name) => registry.gather(name), start })
}

test('no plan is made of what one rank registers: the other ranks hold the rest', async () => {
  const daemon = fakeDaemon([0, 1])
  const { status } = await rankClient(daemon)(1, 'llama/files', { files: ['/a'] })
  expect([status, daemon.prepared]).toEqual([200, []])
  const init = { method: 'POST', body: JSON.stringify({ files: ['/a'] }) }
  const path = '/v1/checkpoints/llama/files'
  await createApp(daemon).request(path, init, { listener: UNIX, server: null })
  expect(daemon.prepared).toEqual(['llama'])
})
