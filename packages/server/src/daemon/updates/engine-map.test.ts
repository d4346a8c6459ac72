import { expect, setDefaultTimeout, test } from 'bun:test'
import { CkptError, EngineMapAnswer, type EngineMapQuery, type Failure } from '@ckpt/core'
import { type } from 'arktype'
import { createApp } from '../http/app.ts'
import { fakeDaemon, UNIX } from '../http/testing/fake-daemon.ts'
import type { RankLink } from '../rank/link.ts'
import type { EngineMapSummary } from '../rank/messages.ts'
import { failure } from '../registry/testing/fixture.ts'
import { engineMap } from './engine-map.ts'
import { type Bench, NAME, tensorsOf, withUpdates } from './testing/fixture.ts'

setDefaultTimeout(60_000)

const COUNT = 6
const version = (seed: number) => tensorsOf(COUNT, 60_000, seed)
const UNTOLD =
  'has told this daemon where its weights lie: one with ckpt_worker does when an update was left to choose its mode'

/** `GET /v1/engine-map` of a daemon with these updates. */
async function get({ updates }: Pick<Bench, 'updates'>, query: Record<string, string>) {
  const app = createApp({ ...fakeDaemon(), updates })
  const path = `/v1/engine-map?${new URLSearchParams(query)}`
  const response = await app.request(path, {}, { listener: UNIX, server: null })
  return { status: response.status, body: (await response.json()) as any }
}

test('after a direct update it says what each rank holds of which tensor, and where', () =>
  withUpdates(
    async (bench) => {
      const engine = await bench.engine({ direct: true })
      const { url } = engine
      const update_url = `${url}/collective_rpc`
      await bench.register(version(1))
      await bench.updates.start(NAME, { update_url, timeout: 20, mode: 'pipelined' }).done
      expect(await get(bench, { url })).toMatchObject({
        status: 404,
        body: { error: { code: 'not_found', message: `no engine at ${url} ${UNTOLD}` } },
      })
      await bench.register(version(2))
      const report = await bench.updates.start(NAME, { update_url, timeout: 20 }).done
      expect(report.mode).toBe('direct')
      const { status, body } = await get(bench, { url })
      expect(status).toBe(200)
      expect(EngineMapAnswer(body) instanceof type.errors).toBe(false)
      // the same bytes that the update has copied; what four does not divide is whole on each rank
      const own = Object.values(version(2)).reduce((sum, { bytes: { length } }) => {
        return sum + (length % 4 === 0 ? length / 4 : length)
      }, 0)
      expect(report.stages.h2d.bytes).toBe(4 * own)
      expect(body).toEqual({
        url,
        ranks: [0, 1, 2, 3].map((rank) => ({
          rank,
          digest: expect.stringMatching(/^[0-9a-f]{64}$/),
          tensors: COUNT,
          copies: COUNT,
          bytes: own,
          allocations: expect.any(Array),
        })),
      })
      const byRoute = await get(bench, { url: update_url })
      expect(byRoute.body).toEqual({ ...body, url: update_url })
      for (const i of [0, 1]) await expectTensor(bench, body, i)
      expect(await get(bench, { url, tensor: 'layer.9' })).toMatchObject({
        status: 404,
        body: { error: { code: 'not_found', tensor: 'layer.9' } },
      })
      expect((await get(bench, { url, uds: '/nowhere' })).body.error.message).toBe(
        `no engine at ${url} behind /nowhere ${UNTOLD}`,
      )
    },
    { rankCount: 4 },
  ))

/** The copies of `layer.i.weight` agree with its size, and everything else with the answer without it. */
async function expectTensor(bench: Bench, all: EngineMapAnswer, i: number) {
  const name = `layer.${i}.weight`
  const { length } = version(2)[name]!.bytes
  const { body } = await get(bench, { url: all.url, tensor: name })
  expect(EngineMapAnswer(body) instanceof type.errors).toBe(false)
  expect(body.tensor).toEqual({ name, dtype: 'uint8', shape: [length] })
  for (const [rank, { placed, ...rest }] of (body as EngineMapAnswer).ranks.entries()) {
    expect(rest).toEqual(all.ranks[rank]!)
    const run = length % 4 === 0 ? length / 4 : length
    const [one] = placed!
    expect(placed).toEqual([
      {
        source: length % 4 === 0 ? rank * run : 0,
        allocation: expect.any(Number),
        destination: expect.any(Number),
        run,
        sizes: [1, 1, 1],
        source_strides: [0, 0, 0],
        destination_strides: [0, 0, 0],
      },
    ])
    expect(one!.destination + run).toBeLessThanOrEqual(rest.allocations[one!.allocation]!)
  }
}

const QUERY: EngineMapQuery = { url: 'http://127.0.0.1:1' }
const SUMMARY: EngineMapSummary = {
  digest: 'd',
  tensors: 1,
  copies: 1,
  bytes: 8,
  allocationBytes: [16],
  tensor: null,
}
const COPY = {
  tensor: 0,
  source: 1,
  allocation: 0,
  destination: 2,
  run: 2,
  sizes: [2, 2, 1],
  sourceStrides: [3, 6, 0],
  destinationStrides: [4, 8, 0],
}
const TENSOR = { name: 'w', dtype: 'bfloat16', shape: [2, 4], copies: [COPY] }

interface PlayedRank {
  readonly answer?: EngineMapSummary | null | Promise<never>
  readonly busy?: () => boolean
  readonly dead?: Failure
  asked?: unknown
}

function linkOf(rank: PlayedRank, index: number): RankLink {
  const link = {
    rank: { rank: index },
    get busy() {
      return rank.busy?.() ?? false
    },
    dead: rank.dead ?? null,
    async request(request: unknown) {
      rank.asked = request
      return rank.answer ?? null
    },
  }
  return link as unknown as RankLink
}

function ask(ranks: readonly PlayedRank[], query = QUERY, runningId: string | null = null) {
  return engineMap({ links: ranks.map(linkOf), queue: { runningId } }, query, 100)
}

test('ranks without a map are left out, and those that have died', async () => {
  const dead: Failure = { code: 'rank_failed', message: 'it has died' }
  const ranks: PlayedRank[] = [{}, { answer: SUMMARY }, { answer: SUMMARY, dead }]
  expect(await ask(ranks)).toEqual({
    url: QUERY.url,
    ranks: [{ rank: 1, digest: 'd', tensors: 1, copies: 1, bytes: 8, allocations: [16] }],
  })
  expect(ranks[1]!.asked).toEqual({ type: 'engine_map', engine: QUERY.url, tensor: null })
  expect(ranks[2]!.asked).toBeUndefined()
  await failure(() => ask([{}]), 'not_found', UNTOLD)
})

test('a tensor that one rank has is told of by all', async () => {
  const query = { ...QUERY, tensor: 'w' }
  const empty = { ...SUMMARY, tensor: { ...TENSOR, copies: [] } }
  const answers = [SUMMARY, { ...SUMMARY, tensor: TENSOR }, empty]
  const { tensor, ranks } = await ask(
    answers.map((answer) => ({ answer })),
    query,
  )
  expect(tensor).toEqual({ name: 'w', dtype: 'bfloat16', shape: [2, 4] })
  expect(ranks.map(({ placed }) => placed)).toEqual([
    [],
    [
      {
        source: 1,
        allocation: 0,
        destination: 2,
        run: 2,
        sizes: [2, 2, 1],
        source_strides: [3, 6, 0],
        destination_strides: [4, 8, 0],
      },
    ],
    [],
  ])
  await failure(() => ask([{ answer: SUMMARY }], query), 'not_found', 'has no w')
})

test('a rank in an update is asked when that has ended, and not waited for longer', async () => {
  let looks = 0
  const ends: PlayedRank = { answer: SUMMARY, busy: () => looks++ < 2 }
  expect((await ask([ends])).ranks).toHaveLength(1)
  const stays: PlayedRank = { answer: SUMMARY, busy: () => true }
  const refused = await ask([{}, stays], QUERY, 'u-1').catch((error: CkptError) => error)
  expect((refused as CkptError).failure).toEqual({
    code: 'update_running',
    message: 'rank 1 has not told its map within 0.1 s: update u-1 runs',
    rank: 1,
    update_id: 'u-1',
  })
  expect(stays.asked).toBeUndefined()
  const silent: PlayedRank = { answer: new Promise(() => {}) }
  await failure(() => ask([silent]), 'update_running', 'it is busy')
})

test('an engine without a URL is none', () =>
  failure(() => ask([], { url: 'nonsense' }), 'bad_request', 'nonsense'))
