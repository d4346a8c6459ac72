import { CkptError, type Metas } from '@ckpt/core'
import { SERVE_DEFAULTS } from '../daemon/options.ts'
import { usageError } from './exit.ts'
import type { JoinFlags } from './join.ts'
import type { UpdateFlags } from './update.ts'

const JOIN_SECONDS = 30
/** Whatever else an update can be told is not of one that joins. */
const FITTING: readonly string[] = [
  '--load-metas-file',
  '--cluster-token-file',
  '--checkpoint-name',
  '--endpoint',
  '--uds',
  '--inference-parallel-size',
  '--engine',
  '--devices',
  '--pause',
  '--ready-timeout',
  '--timeout',
  '--ring-gib',
  '--update-method',
  '--custom-dist',
  '--json',
]

/**
 * `ckpt update --load-metas-file`, which checkpoint-engine's client has instances join with: the flags of `ckpt join` at the cluster that
 * the metas are of.
 *
 * @param given the options that were given
 * @throws CkptError `not_supported`: they name no cluster; CommandError where the flags do not fit
 */
export function joinFlagsOf(
  name: string,
  flags: UpdateFlags,
  metas: Metas,
  given: readonly string[],
): JoinFlags {
  const leader = leaderOf(name, metas)
  const { clusterTokenFile } = flags
  if (clusterTokenFile === undefined) {
    throw usageError(
      `--load-metas-file joins the cluster at ${leader}: give its --cluster-token-file`,
    )
  }
  const [endpoint, ...further] = flags.endpoint ?? []
  const [uds, ...furtherUds] = flags.uds ?? []
  if (further.length + furtherUds.length > 0) {
    throw usageError('--load-metas-file joins with one engine: give one --endpoint')
  }
  const unfit = given.find((flag) => !FITTING.includes(flag))
  if (unfit !== undefined) {
    throw usageError(`--load-metas-file joins another instance: ${unfit} has no place beside it`)
  }
  const { inferenceParallelSize, engine, pause, readyTimeout, timeout, ringGib, json } = flags
  return {
    leader,
    clusterTokenFile,
    endpoint: (endpoint ?? 'http://localhost:19730').replaceAll('{host}', 'localhost'),
    ...(uds === undefined ? {} : { uds }),
    inferenceParallelSize,
    engine,
    devices: flags.devices === 'auto' ? SERVE_DEFAULTS.devices : flags.devices,
    pause,
    ...(timeout === undefined ? {} : { timeout }),
    readyTimeout,
    joinTimeout: JOIN_SECONDS,
    ...(ringGib === undefined ? {} : { ringGib }),
    ...(json === undefined ? {} : { json }),
  }
}

/** Where it can be joined. */
function leaderOf(name: string, metas: Metas): string {
  const owners = Object.values(metas) as { checkpoint?: unknown; cluster?: unknown }[]
  const other = owners.find(({ checkpoint }) => checkpoint !== undefined && checkpoint !== name)
  if (other !== undefined) {
    throw usageError(`these metas are of checkpoint '${other.checkpoint}', not of '${name}'`)
  }
  const cluster = owners.map((owner) => owner.cluster).find((one) => typeof one === 'string')
  if (cluster !== undefined) return cluster
  throw new CkptError(
    'not_supported',
    'these metas name no cluster that could be joined: they are of a daemon that works alone (`ckpt serve` without --leader), or of a leader that listens at every address; the latter can be named: `ckpt join NAME --leader HOST:PORT`',
  )
}
