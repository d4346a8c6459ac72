/** For tests: an HTTP server before a reference engine that notes what it is asked, and answers some routes itself. */
import type { RunningEngine } from '../../../engines/reference/index.ts'

export interface EngineProxy {
  readonly url: string
  readonly port: number
  /** `METHOD /path?query` of every request, in order. */
  readonly calls: string[]
  /** JSON bodies by path, the last one of each. */
  readonly bodies: Map<string, unknown>
  /** The port is free for another; requests that are under way go on. */
  stopListening(): void
  close(): Promise<void>
}

/** Answers of the proxy's own by `METHOD /path`. */
export type OwnAnswers = Record<string, (request: Request) => Response | Promise<Response>>

export function proxyOf(engine: RunningEngine, own: OwnAnswers = {}, port = 0): EngineProxy {
  const calls: string[] = []
  const bodies = new Map<string, unknown>()
  const server = Bun.serve({
    port,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    async fetch(request) {
      const { pathname, search } = new URL(request.url)
      calls.push(`${request.method} ${pathname}${search}`)
      const text = request.method === 'POST' ? await request.text() : undefined
      if (text) bodies.set(pathname, JSON.parse(text))
      const answer = own[`${request.method} ${pathname}`]
      if (answer !== undefined) return answer(request)
      const type = request.headers.get('content-type')
      const headers: Record<string, string> = type === null ? {} : { 'content-type': type }
      const { method } = request
      return fetch(`${engine.url}${pathname}${search}`, { method, headers, body: text })
    },
  })
  return {
    url: `http://127.0.0.1:${server.port}`,
    port: server.port!,
    calls,
    bodies,
    stopListening: () => void server.stop(false),
    close: () => server.stop(true),
  }
}
