import { CkptError, type EngineTarget, type StatusAnswer, UPDATE_TIMEOUT_SECONDS } from '@ckpt/core'
import { type Command, Option } from 'commander'
import { configureLogging } from '../daemon/log.ts'
import { SERVE_DEFAULTS } from '../daemon/options.ts'
import type { DaemonClient } from './client.ts'
import { EXIT, usageError } from './exit.ts'
import { formatSeconds } from './format.ts'
import { interruptBySignal } from './interrupt.ts'
import { joinJob } from './join-job.ts'
import { joinAndKeep } from './join-keep.ts'
import { startLocalDaemon } from './local-daemon.ts'
import { positiveNumber, seconds, wholeNumber, withJson } from './options.ts'
import { print } from './output.ts'
import { Progress } from './progress.ts'
import { missingReasons } from './require-daemons.ts'
import { type Interrupt, runUpdateJob } from './update-job.ts'
import { resultText } from './update-text.ts'

export interface JoinFlags {
  readonly leader: string
  readonly clusterTokenFile: string
  readonly endpoint: string
  readonly uds?: string
  readonly inferenceParallelSize: number
  readonly engine: NonNullable<EngineTarget['engine']>
  readonly checkpointVersion?: string
  /** Not given: `auto`. */
  readonly devices?: string
  readonly pause: 'none' | 'wait' | 'keep' | 'abort'
  readonly timeout?: number
  readonly readyTimeout: number
  readonly joinTimeout: number
  readonly ringGib?: number
  readonly keep?: boolean
  readonly daemon?: string
  readonly hostMemoryGib?: number
  readonly json?: boolean
}

const ASK_MS = 100

export function addJoinCommand(program: Command): void {
  withJson(program.command('join'))
    .description(
      "bring a checkpoint that a cluster's daemons hold into an engine of this host, which has nothing: it is read out of their memory, and without --keep no copy stays",
    )
    .argument('<name>', 'a checkpoint that the daemons of the cluster hold')
    .requiredOption('--leader <host:port>', 'where the daemon of node rank 0 listens')
    .requiredOption('--cluster-token-file <file>', 'file with the token that all daemons have')
    .option('--endpoint <url>', 'the engine', 'http://localhost:19730')
    .option('--uds <path>', 'Unix socket that the engine listens at')
    .option('--inference-parallel-size <n>', 'ranks of the engine', wholeNumber(1), 8)
    .addOption(
      new Option('--engine <kind>', 'what the engine is')
        .choices(['auto', 'vllm', 'sglang', 'lmdeploy'])
        .default('auto'),
    )
    .option('--checkpoint-version <v>', 'only this version; another one fails')
    .option('--devices <spec>', 'as of `ckpt serve` (default: auto)')
    .addOption(
      new Option('--pause <how>', 'pause the engine meanwhile')
        .choices(['none', 'wait', 'keep', 'abort'])
        .default('wait'),
    )
    .option(
      '--timeout <s>',
      `seconds that the update may take, and with --keep the copy before it (default: ${UPDATE_TIMEOUT_SECONDS})`,
      positiveNumber,
    )
    .option('--ready-timeout <s>', 'seconds until the engine answers, 0: for ever', seconds, 0)
    .option('--join-timeout <s>', 'seconds until the leader answers', positiveNumber, 30)
    .option('--ring-gib <n>', 'most device memory that the ring takes', positiveNumber)
    .optionsGroup('With a copy:')
    .option(
      '--keep',
      'copy it into pinned memory first, in a daemon that does without the others afterwards: the one that runs, else this command until it is ended',
    )
    .option(
      '--daemon <path>',
      'Unix socket of that daemon (default: the private socket, as of the other commands)',
    )
    .option('--host-memory-gib <n>', 'most GiB of pinned host memory', positiveNumber)
    .action(async (name: string, flags: JoinFlags) => {
      configureLogging({ format: 'text', level: 'fatal' })
      requireKeep(flags)
      process.exitCode = await (flags.keep ? joinAndKeep(name, flags) : join(name, flags))
    })
}

/** What would be of no effect. */
function requireKeep({ keep, daemon, hostMemoryGib }: JoinFlags): void {
  if (keep === true) return
  if (daemon !== undefined) throw usageError('--daemon needs --keep: else no daemon stays')
  if (hostMemoryGib !== undefined) {
    throw usageError('--host-memory-gib needs --keep: else nothing stays in host memory')
  }
}

/** @returns the exit status */
export async function join(name: string, flags: JoinFlags): Promise<number> {
  const startMs = performance.now()
  const progress = new Progress()
  const interrupt = interruptBySignal()
  const { endpoint, inferenceParallelSize: ranks } = flags
  const daemon = await startLocalDaemon([endpoint], {
    devices: flags.devices ?? SERVE_DEFAULTS.devices,
    ranks,
    ringGib: flags.ringGib ?? null,
    allowEngines: flags.uds === undefined ? [endpoint] : [flags.uds],
    leader: flags.leader,
    clusterTokenFile: flags.clusterTokenFile,
    guest: true,
  })
  try {
    const first = await firstRank(daemon.client, flags, progress, interrupt)
    const own = Array.from({ length: ranks }, (_, i) => first + i)
    const { checkpointVersion: version } = flags
    const job = joinJob(name, flags, own, version === undefined ? {} : { version })
    const result = await runUpdateJob(daemon.client, job, progress, interrupt)
    result.seconds.total = (performance.now() - startMs) / 1000
    await print(flags.json === true, { ok: true, name, ...result, notes: [] }, () =>
      resultText(name, result, []),
    )
    return EXIT.done
  } finally {
    progress.clear()
    await daemon.close('`ckpt join` is done')
  }
}

/** Of this host, as the leader numbers all. @throws CkptError `leader_lost`, `aborted` */
async function firstRank(
  client: DaemonClient,
  { leader, joinTimeout }: JoinFlags,
  progress: Progress,
  { signal }: Interrupt,
): Promise<number> {
  const startMs = performance.now()
  for (;;) {
    if (signal.aborted) throw new CkptError('aborted', 'interrupted while joining')
    const { cluster } = await client.status()
    if (cluster?.first_rank !== undefined) {
      const waited = formatSeconds((performance.now() - startMs) / 1000)
      progress.done('join', `${waited}  as rank ${cluster.first_rank} and those after it`)
      return cluster.first_rank
    }
    const waitedMs = performance.now() - startMs
    if (waitedMs >= joinTimeout * 1000) throw notJoined(leader, joinTimeout, cluster)
    progress.show('join', `waiting for the leader at ${leader}`)
    await Bun.sleep(ASK_MS)
  }
}

function notJoined(
  leader: string,
  joinTimeout: number,
  cluster: StatusAnswer['cluster'],
): CkptError {
  const there = (cluster?.peers.length ?? 0) > 0
  const what = there ? 'has not numbered this host' : 'did not answer'
  const unknown = there ? 'not all of its nodes have come' : 'nothing was heard of it'
  const why = missingReasons(cluster) || unknown
  const message = `the leader at ${leader} ${what} within ${joinTimeout} s: ${why}`
  return new CkptError('leader_lost', message)
}
