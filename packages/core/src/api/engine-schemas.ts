import { type } from 'arktype'
import { Count, Seconds, Shape } from './bounds.ts'

/** Key of an engine worker to the ZeroMQ address it connects to. */
const SocketMap = type('Record<string, string>')

/**
 * vLLM's `POST /collective_rpc` as checkpoint-engine's client sends it. vLLM takes more fields, so
 * unknown ones pass.
 */
export const CollectiveRpcRequest = type({
  method: 'string',
  'args?': 'unknown[]',
  'kwargs?': 'Record<string, unknown>',
  'timeout?': Seconds.or('null'),
})
export type CollectiveRpcRequest = typeof CollectiveRpcRequest.infer

/** The arguments of `update_weights_from_ipc` in a {@link CollectiveRpcRequest}. */
export const UpdateWeightsArgs = type([SocketMap])
export type UpdateWeightsArgs = typeof UpdateWeightsArgs.infer

/** SGLang's and LMDeploy's `POST /update_weights_from_ipc`. */
export const UpdateWeightsFromIpcRequest = type({
  zmq_handles: SocketMap,
  'flush_cache?': 'boolean',
  'weight_version?': 'string | null',
  'torch_empty_cache?': 'boolean',
})
export type UpdateWeightsFromIpcRequest = typeof UpdateWeightsFromIpcRequest.infer

/** `POST /v1/faults` of the reference engine: what it does wrong from now on, as `ckpt engine --fault`. */
export const FaultsRequest = type({ '+': 'reject', faults: 'string[] <= 64' })
export type FaultsRequest = typeof FaultsRequest.infer

/** `GET /v1/weights` of the reference engine: what every rank of it holds. `sha256` is hex. */
export const EngineWeights = type({
  version: 'string | null',
  updates: Count,
  torn: 'boolean',
  ranks: type({
    uuid: 'string',
    tensors: type({
      '[string]': type({ dtype: 'string', shape: Shape, sha256: 'string' }),
    }),
  }).array(),
})
export type EngineWeights = typeof EngineWeights.infer
