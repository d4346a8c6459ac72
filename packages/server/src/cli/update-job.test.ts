/** What the client does when a daemon or its connection misbehaves; the whole job runs against real ones in update.test.ts. */
import { afterAll, beforeAll, expect, test } from 'bun:test'
import { join } from 'node:path'
import type { UpdateReport, UpdateState } from '@ckpt/core'
import { type Scratch, scratch } from '../../../../test/support/process.ts'
import { DaemonClient, daemonAddress } from './client.ts'
import { CommandError } from './exit.ts'
import { Progress } from './progress.ts'
import { followUpdate } from './update-job.ts'

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

/** A daemon with one update; `events` is the text of each connection to its stream in turn, `states` of each question. */
function scripted(name: string, events: (string | null)[], states: UpdateState[]) {
  const asked: string[] = []
  const socket = join(dir.path, `${name}.sock`)
  const server = Bun.serve({
    unix: socket,
    async fetch(request) {
      const { pathname } = new URL(request.url)
      asked.push(`${request.method} ${pathname.split('/').at(-1)}`)
      if (pathname.endsWith('/events')) {
        const text = events.shift()
        if (text === null)
          return Response.json({ error: { code: 'internal', message: 'no' } }, { status: 500 })
        const headers = { 'content-type': 'text/event-stream' }
        return new Response(text?.endsWith(CUT) ? cutOff(text) : (text ?? ''), { headers })
      }
      if (pathname.endsWith('/update')) return Response.json(state({}), { status: 202 })
      return Response.json(states.length > 1 ? states.shift() : states[0])
    },
  })
  const client = new DaemonClient(daemonAddress(socket))
  return { client, asked, [Symbol.asyncDispose]: () => server.stop(true) }
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

function follow(client: DaemonClient, signal = new AbortController().signal) {
  return followUpdate(client, 'c', { update_id: 'u' }, QUIET, { signal })
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
  expect((await following).failure.code).toBe('daemon_unreachable')
})

test('a refusal of the events is not retried for ever', async () => {
  await using daemon = scripted('refused', [null], [state({})])
  expect((await follow(daemon.client).catch((reason) => reason)).code).toBe('internal')
})
