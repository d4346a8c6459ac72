import { CkptError } from '@ckpt/core'
import type { EngineAdapter, EngineKind } from './adapter.ts'
import type { EngineClient } from './client.ts'
import { lmdeploy } from './lmdeploy.ts'
import { post } from './post.ts'
import { sglang } from './sglang.ts'
import { vllm } from './vllm.ts'

const ADAPTERS: Readonly<Record<EngineKind, EngineAdapter>> = { vllm, sglang, lmdeploy, post }

export function adapterOf(kind: EngineKind): EngineAdapter {
  return ADAPTERS[kind]
}

/**
 * Which engine answers at a URL whose kind the user did not say: its path tells where it has one (an unknown path takes
 * checkpoint-engine's body), else the routes of the server do.
 *
 * @throws CkptError `engine_unreachable`, `engine_protocol` when it has none of the routes
 */
export async function detectEngine(
  client: EngineClient,
  signal: AbortSignal,
): Promise<EngineAdapter> {
  const path = client.updatePath
  if (path?.endsWith('/collective_rpc')) return vllm
  if (path !== null && !path.endsWith('/update_weights_from_ipc')) return post
  const update = await client.get('/update_weights_from_ipc', signal)
  if (update.ok && 'device_uuids' in Object(update.json)) return lmdeploy
  // 405: the route exists, but not for GET
  if (path !== null) return sglang
  const rpc = await client.get('/collective_rpc', signal)
  if (rpc.status === 405) return vllm
  if (update.status === 405) return sglang
  throw new CkptError(
    'engine_protocol',
    `${client.base} has neither /collective_rpc nor /update_weights_from_ipc: is its weight update turned on?`,
  )
}
