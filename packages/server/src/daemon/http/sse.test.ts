import { expect, test } from 'bun:test'
import type { UpdateEvent } from '@ckpt/core'
import { eventStream, formatEvent } from './sse.ts'
import { eventsOf, state } from './testing/fake-daemon.ts'

const progress: UpdateEvent = { event: 'progress', ...state('u', { map: { 'a\nb': 'ipc://x' } }) }

test('an event is two lines and a blank one, whatever it holds', () => {
  const lines = formatEvent(progress).split('\n')
  expect(lines).toHaveLength(4)
  expect(lines[0]).toBe('event: progress')
  expect(JSON.parse(lines[1]!.slice('data: '.length))).toEqual(progress)
})

test('silence is filled with comments, and the stream ends with the events', async () => {
  const slow = async function* () {
    yield progress
    await Bun.sleep(100)
    yield { ...progress, event: 'done' as const }
  }
  const parts = (await eventStream(slow(), 20).text()).split('\n\n')
  const beats = parts.filter((part) => part === ': heartbeat').length
  expect(beats).toBeGreaterThanOrEqual(2)
  expect(parts.filter((part) => part.startsWith('event: '))).toHaveLength(2)
  expect(parts.at(-2)).toStartWith('event: done')
})

test('a client that reads slowly is not sent more than it reads', async () => {
  let taken = 0
  const endless = async function* () {
    for (;;) {
      taken++
      yield progress
    }
  }
  const reader = eventStream(endless(), 1000).body!.getReader()
  await reader.read()
  await Bun.sleep(20)
  expect(taken).toBeLessThan(10)
  await reader.cancel()
})

test('a client that leaves ends the iteration', async () => {
  let ended = false
  const endless = async function* () {
    try {
      for (;;) {
        yield progress
        await Bun.sleep(5)
      }
    } finally {
      ended = true
    }
  }
  const reader = eventStream(endless(), 1000).body!.getReader()
  await reader.read()
  await reader.cancel()
  await Bun.sleep(50)
  expect(ended).toBe(true)
})

test('events that fail end the stream instead of hanging', async () => {
  const broken = async function* () {
    yield progress
    throw new Error('lost')
  }
  const text = await Promise.race([eventStream(broken(), 1000).text(), Bun.sleep(500)]).catch(
    (error) => String(error),
  )
  expect(text).toContain('lost')
  expect(await eventStream(eventsOf([]), 10).text()).toBe(': events\n\n')
})
