import { expect, test } from 'bun:test'
import type { EngineTarget } from '@ckpt/core'
import { waitForEngine } from './engine-ready.ts'

/** A server that answers by path; what is not listed is 404. */
function engine(answers: Record<string, () => Response>) {
  const asked: string[] = []
  const server = Bun.serve({
    port: 0,
    fetch(request) {
      const { pathname } = new URL(request.url)
      asked.push(pathname)
      return answers[pathname]?.() ?? new Response(null, { status: 404 })
    },
  })
  return {
    url: server.url.href.replace(/\/$/, ''),
    asked,
    [Symbol.asyncDispose]: () => server.stop(true),
  }
}

function wait(
  target: Partial<EngineTarget> & { url: string },
  timeoutMs = 5_000,
  signal?: AbortSignal,
) {
  const waits: string[] = []
  const done = waitForEngine(
    { ranks: [0], ...target },
    {
      timeoutMs,
      signal: signal ?? new AbortController().signal,
      onWait: (reason) => waits.push(reason),
    },
  )
  return { done, waits }
}

const ok = () => new Response('ok')

test('an unknown engine is asked with /ping, then with /health', async () => {
  await using both = engine({ '/ping': ok, '/health': ok })
  await wait({ url: both.url }).done
  expect(both.asked).toEqual(['/ping'])
  await using old = engine({ '/health': ok })
  await wait({ url: old.url, engine: 'auto' }).done
  expect(old.asked).toEqual(['/ping', '/health'])
})

test('SGLang is never asked with /health, vLLM never with anything else', async () => {
  await using server = engine({ '/ping': ok, '/health': ok })
  await wait({ url: server.url, engine: 'sglang' }).done
  await wait({ url: server.url, engine: 'vllm' }).done
  expect(server.asked).toEqual(['/ping', '/health'])
})

test('an SGLang whose /ping is not let through is known by its route of updates, and what is none is told of', async () => {
  const posted = () => new Response(null, { status: 405 })
  await using hidden = engine({ '/update_weights_from_ipc': posted, '/health': ok })
  await wait({ url: hidden.url, engine: 'sglang' }).done
  expect(hidden.asked).toEqual(['/ping', '/update_weights_from_ipc'])
  await using other = engine({ '/health': ok })
  const { done } = wait({ url: other.url, engine: 'sglang' }, 300)
  await expect(done).rejects.toThrow(
    '/ping answered 404, /update_weights_from_ipc answered 404: is it SGLang?',
  )
})

test('LMDeploy says itself when it is ready', async () => {
  let tries = 0
  await using server = engine({
    '/update_weights_from_ipc': () => Response.json({ ready: ++tries > 2 }),
  })
  const { done, waits } = wait({ url: server.url, engine: 'lmdeploy' })
  await done
  expect(waits).toHaveLength(2)
})

test('LMDeploy that is awake says that it is not ready, and can be put to sleep for an update', async () => {
  const message = 'Engine must be sleeping with kv_cache unavailable.'
  let version: string | null = null
  const none = 'checkpoint-engine is not installed'
  await using server = engine({
    '/update_weights_from_ipc': () => {
      const words = version === null ? none : message
      return Response.json({ ready: false, message: words, checkpoint_engine_version: version })
    },
  })
  const { done, waits } = wait({ url: server.url, engine: 'lmdeploy' })
  setTimeout(() => {
    version = '0.4.2'
  }, 250)
  await done
  expect(waits[0]).toContain(none)
})

test('an engine that starts later is waited for', async () => {
  let healthy = false
  await using server = engine({
    '/ping': () => new Response(null, { status: healthy ? 200 : 503 }),
  })
  setTimeout(() => {
    healthy = true
  }, 250)
  const { done, waits } = wait({ url: server.url })
  await done
  expect(waits[0]).toContain('503')
})

test('an engine that never comes is engine_unreachable, in time', async () => {
  const startMs = performance.now()
  const { done } = wait({ url: 'http://127.0.0.1:1' }, 300)
  expect(await done.catch((error) => error.code)).toBe('engine_unreachable')
  expect(performance.now() - startMs).toBeLessThan(2_000)
})

test('an interrupt ends the wait at once', async () => {
  const controller = new AbortController()
  const { done } = wait({ url: 'http://127.0.0.1:1' }, 0, controller.signal)
  setTimeout(() => controller.abort(), 100)
  const startMs = performance.now()
  expect(await done.catch((error) => error.code)).toBe('aborted')
  expect(performance.now() - startMs).toBeLessThan(1_500)
})

test('an endpoint that names the route of the update is asked at its server', async () => {
  await using vllm = engine({ '/health': ok })
  await wait({ url: `${vllm.url}/collective_rpc`, engine: 'vllm' }).done
  expect(vllm.asked).toEqual(['/health'])
})
