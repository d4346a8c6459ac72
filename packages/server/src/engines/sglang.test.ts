import { expect, test } from 'bun:test'
import { EngineClient } from './client.ts'
import { enginesHere } from './host.ts'
import { flushCache } from './sglang.ts'

const FOREVER = new AbortController().signal
const RETRY_MS = 1

test.each([
  [null, 10, 'pause the engine for updates'],
  // SGLang 0.5.16 does not flush while requests wait, as those do that `retract` has put back
  ['wait', 10, "pause it with 'abort' for updates"],
  ['keep', 10, "pause it with 'abort' for updates"],
  ['abort', 50, "pause it with 'abort' for updates"],
] as const)(
  'a cache that cannot be flushed (paused: %p) is a note, not an endless wait',
  async (paused, tries, words) => {
    const asked: string[] = []
    const server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch({ method, url }) {
        asked.push(`${method} ${new URL(url).pathname}`)
        return new Response('Flush cache failed.', { status: 400 })
      },
    })
    const address = { url: `http://127.0.0.1:${server.port}`, uds: null }
    const client = new EngineClient(address, enginesHere(null))
    const note = await flushCache(client, paused, FOREVER, RETRY_MS)
    expect(note).toMatchObject({ code: 'engine_busy', phase: 'post' })
    expect(note?.message).toContain('/flush_cache answered 400: Flush cache failed.')
    expect(note?.message).toContain(words)
    expect(asked).toEqual(Array.from({ length: tries }, () => 'POST /flush_cache'))
    await server.stop(true)
  },
)
