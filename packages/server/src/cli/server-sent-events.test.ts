import { expect, test } from 'bun:test'
import { readServerSentEvents } from './server-sent-events.ts'

async function read(...chunks: string[]) {
  const bytes = chunks.map((chunk) => new TextEncoder().encode(chunk))
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const chunk of bytes) controller.enqueue(chunk)
      controller.close()
    },
  })
  return await Array.fromAsync(readServerSentEvents(body))
}

test('events, heartbeats, several data lines and either end of line', async () => {
  expect(
    await read(
      'event: phase\ndata: {"a":1}\n\n: heartbeat\n\ndata: x\r\ndata: y\r\n\r\nevent: none\n\n',
    ),
  ).toEqual([
    { event: 'phase', data: '{"a":1}' },
    { event: 'message', data: 'x\ny' },
  ])
})

test('chunks may end anywhere, also within a character', async () => {
  const text = 'event: done\ndata: größer\n\n'
  const bytes = new TextEncoder().encode(text)
  for (let cut = 1; cut < bytes.length; cut++) {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(bytes.slice(0, cut))
        controller.enqueue(bytes.slice(cut))
        controller.close()
      },
    })
    expect(await Array.fromAsync(readServerSentEvents(body))).toEqual([
      { event: 'done', data: 'größer' },
    ])
  }
})

test('an event that the connection cuts is none', async () => {
  expect(await read('data: whole\n\ndata: ha')).toEqual([{ event: 'message', data: 'whole' }])
})
