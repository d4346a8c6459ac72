import { type } from 'arktype'
import type { EngineClient, EngineReply } from './client.ts'

/** What is read of `GET /server_info?config_format=json`, which vLLM has in development mode. */
const ServerInfo = type({
  vllm_config: {
    parallel_config: { worker_extension_cls: 'string' },
    'weight_transfer_config?': type({ backend: 'string' }).or('null'),
  },
})

/** How vLLM is started for an update, for messages. */
export const STARTED_WITH =
  'start vLLM with VLLM_SERVER_DEV_MODE=1, VLLM_ALLOW_INSECURE_SERIALIZATION=1 and --weight-transfer-config \'{"backend":"ipc"}\', or with a worker extension'

/** A vLLM that was started without a worker extension. */
export interface WithoutExtension {
  /** Of its own weight transfer; null: it was started without that too. */
  readonly backend: string | null
}

/** Whether an answer is that no worker has the method, as vLLM says it: a worker that has raised says other things. */
export function missesMethod(
  { status, words }: Pick<EngineReply, 'status' | 'words'>,
  method: string,
): boolean {
  return status === 500 && words.includes(method) && /not implemented|has no attribute/i.test(words)
}

/**
 * How a vLLM was started. No worker is asked; the first time the server takes seconds, since it looks at its whole environment too.
 *
 * @returns null: it has an extension, or does not tell
 */
export async function withoutExtension(
  client: EngineClient,
  signal: AbortSignal,
): Promise<WithoutExtension | null> {
  const { ok, json } = await client.get('/server_info?config_format=json', signal)
  const info = ServerInfo(json)
  if (!ok || info instanceof type.errors) return null
  const { parallel_config, weight_transfer_config } = info.vllm_config
  if (parallel_config.worker_extension_cls !== '') return null
  return { backend: weight_transfer_config?.backend ?? null }
}

/** What would bring such an engine the weights. @param other what stands in the way of its own transfer through CUDA IPC */
export function missesExtension({ backend }: WithoutExtension, other: string): string {
  if (backend === 'ipc') return `This vLLM has no worker extension; ${other}`
  const own =
    backend === null
      ? 'no weight transfer of its own'
      : `its own weight transfer is through ${backend}, which is not spoken here`
  return `This vLLM has no worker extension, and ${own}: ${STARTED_WITH}`
}
