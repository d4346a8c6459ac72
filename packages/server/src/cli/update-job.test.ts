/** What the client does when a daemon or its connection misbehaves; the whole job runs against real ones in update.test.ts. */
import { afterAll, beforeAll, expect, test } from 'bun:test'
import { join } from 'node:path'
import type { UpdateReport, UpdateState } from '@ckpt/core'
import { type Scratch, scratch } from '../../../../test/support/process.ts'
import { DaemonClient, daemonAddress } from './client.ts'
import { CommandError } from './exit.ts'
import { Progress } from './progress.ts'
import { followUpdate, registerNotes } from './update-job.ts'

let dir: Scratch
beforeAll(() => {
  dir = scratch()
})
afterAll(() => dir.remove())

const QUIET = new Progress({ write: () => {} })

function state(more: Partial<UpdateState>): UpdateState {
  return {
    update_id: 'u',
    checkpoint: 'c',
    state: 'running',
    phase: 'transfer',
    buckets_done: 0,
    buckets: 2,
    bytes_done: 0,
    bytes: 10,
    started_at: null,
    ...more,
  }
}

/**
 * A daemon with one update; `events` is the text of each connection to its stream in turn, `states` of each question (null:
 * never answered). Its client takes 300 ms without a word for a dead connection.
 */
function scripted(
  name: string,
  events: (string | ReadableStream | null)[],
  states: (UpdateState | null)[],
  listen: 'unix' | 'tcp' = 'unix',
) {
  const asked: string[] = []
  const socket = join(dir.path, `${name}.sock`)
  const server = Bun.serve({
    ...(listen === 'unix' ? { unix: socket } : { hostname: '127.0.0.1', port: 0 }),
    async fetch(request) {
      const { pathname } = new URL(request.url)
      asked.push(`${request.method} ${pathname.split('/').at(-1)}`)
      if (pathname.endsWith('/events')) {
        const text = events.shift()
        if (text === null)
          return Response.json({ error: { code: 'internal', message: 'no' } }, { status: 500 })
        if (text === NO_ANSWER) return await never()
        const headers = { 'content-type': 'text/event-stream' }
        const cut = typeof text === 'string' && text.endsWith(CUT)
        return new Response(cut ? cutOff(text) : (text ?? ''), { headers })
      }
      if (pathname.endsWith('/update')) return Response.json(state({}), { status: 202 })
      const answer = states.length > 1 ? states.shift() : states[0]
      return answer === null ? await never() : Response.json(answer)
    },
  })
  const client = new DaemonClient(
    daemonAddress(listen === 'unix' ? socket : `http://127.0.0.1:${server.port}`),
    300,
  )
  return { client, asked, [Symbol.asyncDispose]: () => server.stop(true) }
}

/** As a text of events: they are never answered. */
const NO_ANSWER = '(no answer)'
const never = () => new Promise<Response>(() => {})

/** The texts, `gapMs` apart; then nothing more, and no end. */
function thenSilent(texts: readonly string[], gapMs = 0): ReadableStream<string> {
  return new ReadableStream({
    async start(controller) {
      for (const text of texts) {
        controller.enqueue(text)
        await Bun.sleep(gapMs)
      }
    },
  })
}

/** At the end of a text: the connection breaks there, in the middle of the answer. */
const CUT = '(cut)'

function cutOff(text: string): ReadableStream<string> {
  return new ReadableStream({
    async start(controller) {
      controller.enqueue(text.slice(0, -CUT.length))
      await Bun.sleep(50)
      controller.error(new Error('the connection breaks'))
    },
  })
}

const sse = (event: string, data: UpdateState) =>
  `event: ${event}\ndata: ${JSON.stringify({ event, ...data })}\n\n`
const REPORT = { update_id: 'u', bytes: 10, gb_per_s: 1, seconds: { total: 1 } } as UpdateReport
const DONE = state({ state: 'done', phase: null, report: REPORT })

function follow(client: DaemonClient, signal = new AbortController().signal, progress = QUIET) {
  return followUpdate(client, 'c', { update_id: 'u' }, progress, { signal })
}

/** Follows and returns what people were told beside the result. */
async function followNoted(client: DaemonClient) {
  let told = ''
  const progress = new Progress({ write: (text) => (told += text) })
  const result = await follow(client, undefined, progress).catch((reason) => reason)
  return { result, told }
}

test('the report comes with the last event', async () => {
  await using daemon = scripted('plain', [sse('phase', state({})) + sse('done', DONE)], [DONE])
  expect(await follow(daemon.client)).toEqual(REPORT)
  expect(daemon.asked).toEqual(['POST update', 'GET events', 'GET u'])
})

test('a stream that ends early is opened again as long as the update runs', async () => {
  await using daemon = scripted(
    'cut',
    [sse('phase', state({})), 'data: {"ha', sse('done', DONE)],
    [state({}), state({}), DONE],
  )
  expect(await follow(daemon.client)).toEqual(REPORT)
  expect(daemon.asked.filter((line) => line === 'GET events')).toHaveLength(3)
})

test('so is one whose connection breaks', async () => {
  const broken = `${sse('phase', state({}))}data: {"ha${CUT}`
  await using daemon = scripted('broken', [broken, sse('done', DONE)], [state({}), DONE])
  expect(await follow(daemon.client)).toEqual(REPORT)
  expect(daemon.asked.filter((line) => line === 'GET events')).toHaveLength(2)
})

test('a failed update throws its failure with the state beside it', async () => {
  const error = { code: 'engine_failed', message: 'the engine says no', rank: 1 } as const
  const failed = state({ state: 'failed', error })
  await using daemon = scripted('failed', [sse('failed', failed)], [failed])
  const thrown = await follow(daemon.client).catch((reason) => reason)
  expect(thrown).toBeInstanceOf(CommandError)
  expect(thrown.failure).toEqual(error)
  expect(thrown.details.update).toMatchObject({ state: 'failed' })
})

test('an interrupt aborts the update and waits for its end', async () => {
  const error = { code: 'aborted', message: 'aborted' } as const
  const failed = state({ state: 'failed', error })
  await using daemon = scripted(
    'abort',
    ['', '', sse('failed', failed)],
    [state({}), state({}), failed],
  )
  const controller = new AbortController()
  setTimeout(() => controller.abort(), 100)
  const thrown = await follow(daemon.client, controller.signal).catch((reason) => reason)
  expect(thrown.failure.code).toBe('aborted')
  expect(daemon.asked.filter((line) => line === 'POST abort')).toHaveLength(1)
})

test('a daemon that goes away during the update is daemon_unreachable', async () => {
  const daemon = scripted('gone', [''], [state({})])
  const following = follow(daemon.client).catch((reason) => reason)
  await Bun.sleep(100)
  await daemon[Symbol.asyncDispose]()
  const { failure } = await following
  expect(failure.code).toBe('daemon_unreachable')
  expect(failure.message).toMatch(
    /the daemon ended while update .* ran, and an engine may hold a part/,
  )
})

test('a refusal of the events is not retried for ever', async () => {
  await using daemon = scripted('refused', [null], [state({})])
  expect((await follow(daemon.client).catch((reason) => reason)).code).toBe('internal')
})

for (const listen of ['unix', 'tcp'] as const) {
  test(`a connection that falls silent (${listen}) is given up, said so, and opened again`, async () => {
    const events = [thenSilent([sse('phase', state({}))]), NO_ANSWER, sse('done', DONE)]
    const states = [state({}), state({}), DONE]
    await using daemon = scripted(`silent-${listen}`, events, states, listen)
    const { result, told } = await followNoted(daemon.client)
    expect(result).toEqual(REPORT)
    const round = ['GET events', 'GET u']
    expect(daemon.asked).toEqual(['POST update', ...round, ...round, ...round])
    const said = /^ckpt: the daemon at .* has sent nothing for 0\.3 s; asking for .* update u$/gm
    expect(told.match(said)).toHaveLength(2)
  })
}

test('one that falls silent after the end of the update brings the report', async () => {
  await using daemon = scripted('silent-end', [thenSilent([sse('phase', state({}))])], [DONE])
  expect((await followNoted(daemon.client)).result).toEqual(REPORT)
})

test('heartbeats keep a connection on which nothing else happens', async () => {
  const beats = Array.from({ length: 10 }, () => ': heartbeat\n\n')
  const events = [thenSilent([...beats, sse('done', DONE)], 100)]
  await using daemon = scripted('beats', events, [DONE])
  expect(await followNoted(daemon.client)).toEqual({ result: REPORT, told: '' })
  expect(daemon.asked).toEqual(['POST update', 'GET events', 'GET u'])
})

test('a daemon that does not answer at all any more is daemon_unreachable', async () => {
  await using daemon = scripted('mute', [thenSilent([])], [null])
  const { result } = await followNoted(daemon.client)
  expect(result.failure.code).toBe('daemon_unreachable')
  expect(result.failure.message).toEndWith('for 0.3 s; update u may still be running there')
})

test('files that were read past the page cache are noted, others are not', () => {
  const registered = { name: 'm', version: null, tensors: 1, bytes: 10, seconds: 1 }
  const cached = { how: 'read' as const, files: 4, bytes: 8, reason: 'in the page cache' }
  expect(registerNotes({ ...registered, reads: [cached] })).toEqual([])
  const cold = { how: 'direct' as const, files: 2, bytes: 3_100_000_000, reason: 'not cached' }
  expect(registerNotes({ ...registered, reads: [cached, cold] })).toEqual([
    'read past the page cache (O_DIRECT): not cached (3.1 GB of 2 files)',
  ])
})
