import type { EngineClient } from './client.ts'

const VERSION = /^v?(\d+)\.(\d+)/

/** Of a vLLM server. */
export interface EngineVersion {
  readonly text: string
  atLeast(major: number, minor: number): boolean
}

/** As its route `/version` tells it. Null: there is no such route, or it says something else. */
export async function versionOf(
  client: EngineClient,
  signal: AbortSignal,
): Promise<EngineVersion | null> {
  const text = await versionText(client, signal)
  const [, major, minor] = (VERSION.exec(text ?? '') ?? []).map(Number)
  if (text === null || major === undefined || minor === undefined) return null
  return { text, atLeast: (a, b) => major > a || (major === a && minor >= b) }
}

/** What vLLM's route `/version` says. Null: there is none. */
export async function versionText(
  client: EngineClient,
  signal: AbortSignal,
): Promise<string | null> {
  const { ok, json } = await client.get('/version', signal)
  const { version } = (json ?? {}) as { version?: unknown }
  return ok && typeof version === 'string' ? version : null
}
