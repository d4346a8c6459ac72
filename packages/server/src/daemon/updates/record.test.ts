import { expect, test } from 'bun:test'
import type { UpdateEvent } from '@ckpt/core'
import { UpdateRecord } from './record.ts'

test('a slow reader loses progress at most, never a phase or the end', async () => {
  const record = new UpdateRecord('u', 'm')
  record.size(1000, 1000)
  const stream = record.events()[Symbol.asyncIterator]()
  expect((await stream.next()).value).toMatchObject({ event: 'phase', state: 'queued' })
  record.start(new Date(0))
  record.phase('open')
  for (let bucket = 1; bucket <= 500; bucket++) record.progress(bucket, bucket)
  record.phase('release')
  record.fail({ code: 'aborted', message: 'enough', phase: 'release' }, [])
  const seen: UpdateEvent[] = []
  for (let next = await stream.next(); !next.done; next = await stream.next()) seen.push(next.value)
  expect(seen.length).toBeLessThanOrEqual(65)
  expect(seen.filter(({ event }) => event === 'phase').map(({ phase }) => phase)).toEqual([
    'open',
    'release',
  ])
  expect(seen.at(-2)).toMatchObject({ buckets_done: 500 })
  expect(seen.at(-1)).toMatchObject({ event: 'failed', error: { message: 'enough' } })
  await expect(record.done).rejects.toThrow('enough')
})

test('a reader that leaves while it waits is let go at once', async () => {
  const record = new UpdateRecord('u', 'm')
  const stream = record.events()[Symbol.asyncIterator]()
  await stream.next()
  const waiting = stream.next()
  await stream.return!()
  expect(await waiting).toEqual({ value: undefined, done: true })
  record.phase('open')
  expect(await stream.next()).toEqual({ value: undefined, done: true })
})

test('the same progress is told once', async () => {
  const record = new UpdateRecord('u', 'm')
  const stream = record.events()[Symbol.asyncIterator]()
  await stream.next()
  record.progress(1, 10)
  record.progress(1, 10)
  record.phase('post')
  expect([(await stream.next()).value?.event, (await stream.next()).value?.event]).toEqual([
    'progress',
    'phase',
  ])
})
