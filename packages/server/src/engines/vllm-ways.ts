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

/** Whether an answer may be that no worker has the method: older versions say no more than that something failed. */
export function mayMissMethod({ status, words }: Pick<EngineReply, 'status' | 'words'>): boolean {
  return status === 500 && /not implemented|has no attribute|internal server error/i.test(words)
}

/**
 * How a vLLM was started that has failed to call a method of a worker extension. No worker is asked; the first time the server
 * takes seconds, since it looks at its whole environment too.
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

/** Why an engine of so many ranks cannot be updated. */
export function missesExtension({ backend }: WithoutExtension, ranks: number): string {
  const own =
    backend === null
      ? 'no weight transfer of its own'
      : `its own weight transfer is through ${backend}, with ${ranks} ${ranks === 1 ? 'rank' : 'ranks'}`
  return `This vLLM has no worker extension, and ${own}: ${STARTED_WITH}${ranks === 1 ? '' : ', which engines of several ranks need'}`
}
