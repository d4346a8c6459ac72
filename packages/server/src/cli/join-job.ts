import type { EngineTarget, UpdateRequest } from '@ckpt/core'
import type { JoinFlags } from './join.ts'
import type { UpdateJob } from './update-job.ts'

/** The update of the engine that joins, from what is held already. */
export function joinJob(
  name: string,
  flags: JoinFlags,
  ranks: readonly number[],
  request: Pick<UpdateRequest, 'version'> = {},
): UpdateJob {
  const { endpoint: url, engine, uds, pause, timeout } = flags
  const target: EngineTarget = {
    url,
    ranks: [...ranks],
    engine,
    ...(uds === undefined ? {} : { uds }),
  }
  return {
    name,
    files: null,
    steps: [{ engines: [target], ranks }],
    request: { pause, ...request, ...(timeout === undefined ? {} : { timeout }) },
    readyTimeoutMs: flags.readyTimeout * 1000,
    waitFor: [target],
    pauseMs: 0,
  }
}
