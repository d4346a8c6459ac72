import { CkptError } from '@ckpt/core'
import type { EngineAdapter } from './adapter.ts'
import { vllm } from './vllm.ts'

/**
 * A URL of the user's own that takes checkpoint-engine's body (`request_inference_to_update` of its examples posts it to any
 * URL): nothing else of the server is known, so nothing else is called.
 */
export const post: EngineAdapter = {
  kind: 'post',
  updatePath: '/',
  look: async () => ({ ready: true, words: '', deviceUuids: null }),
  updateBody: vllm.updateBody,
  judge: vllm.judge,
  pause: async (client) => {
    throw new CkptError('not_supported', `${client.address.url}: this engine cannot be paused`)
  },
  resume: async () => {},
  outOfStep: async () => false,
  settle: async () => null,
}
