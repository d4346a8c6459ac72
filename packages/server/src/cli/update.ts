import {
  OPEN_TIMEOUT_SECONDS,
  PAUSE_TIMEOUT_SECONDS,
  type RegisterRequest,
  UPDATE_TIMEOUT_SECONDS,
  type UpdateRequest,
} from '@ckpt/core'
import { type Command, Option } from 'commander'
import { configureLogging } from '../daemon/log.ts'
import { isLoopback } from '../engines/url.ts'
import { findCheckpointFiles } from './checkpoint-files.ts'
import { addressText, type DaemonClient, DaemonClient as Client, daemonAddress } from './client.ts'
import { engineTargets } from './engine-targets.ts'
import { EXIT, usageError } from './exit.ts'
import { formatSeconds } from './format.ts'
import { interruptBySignal } from './interrupt.ts'
import { startLocalDaemon } from './local-daemon.ts'
import { join } from './join.ts'
import { joinFlagsOf } from './join-metas.ts'
import { loadMetas, saveMetas } from './metas-file.ts'
import {
  collect,
  type DaemonFlags,
  positiveNumber,
  seconds,
  wholeNumber,
  withDaemon,
} from './options.ts'
import { print } from './output.ts'
import { Progress } from './progress.ts'
import { requireDaemons } from './require-daemons.ts'
import { writeTrace } from './trace-file.ts'
import { resultText } from './update-text.ts'
import { type VerifiedEngine, verifyUpdate } from './verify-update.ts'
import { type JobResult, runUpdateJob, type UpdateJob, type UpdateStep } from './update-job.ts'

export interface UpdateFlags extends DaemonFlags {
  checkpointPath?: string
  endpoint?: string[]
  inferenceParallelSize: number
  checkpointName: string
  updateMethod: 'broadcast' | 'p2p' | 'all'
  uds?: string[]
  saveMetasFile?: string
  loadMetasFile?: string
  clusterTokenFile?: string
  sleepTime: number
  customDist?: string
  weightVersion?: string
  engine: NonNullable<UpdateRequest['engine']>
  engineMethod?: string
  pause: NonNullable<UpdateRequest['pause']>
  pauseTimeout?: number
  openTimeout?: number
  timeout?: number
  readyTimeout: number
  mode: NonNullable<UpdateRequest['mode']>
  ifBusy: NonNullable<UpdateRequest['if_busy']>
  require: NonNullable<UpdateRequest['require']>
  stream: boolean
  inPlace?: boolean
  consume?: boolean
  devices: string
  ringGib?: number
  bucketMib?: number
  hostMemoryGib?: number
  trace?: string
  verify?: boolean
}

const DEFAULT_ENDPOINT = 'http://localhost:19730'
/** checkpoint-engine's client waits as long for its process group to end. */
const BETWEEN_UPDATES_MS = 2000

const choice = (flags: string, text: string, first: string, ...rest: string[]) =>
  new Option(flags, text).choices([first, ...rest]).default(first)

export function addUpdateCommand(program: Command): void {
  const command = withDaemon(program.command('update'))
    .description('load a checkpoint and update running engines with it')
    .argument('[name]', 'name of the checkpoint (instead of --checkpoint-name)')
  addCheckpointOptions(command)
  addEngineOptions(command)
  addUpdateOptions(command)
  command
    .optionsGroup('Without a running daemon:')
    .option('--devices <spec>', 'auto, host, host:D, cuda or cuda:0,2', 'auto')
    .option('--ring-gib <n>', 'GiB of device memory for the ring', positiveNumber)
    .option('--bucket-mib <n>', 'most MiB of a bucket', positiveNumber)
    .option('--host-memory-gib <n>', 'most GiB of pinned host memory', positiveNumber)
  command.action(async (name: string | undefined, flags: UpdateFlags) => {
    process.exitCode = await (flags.loadMetasFile === undefined
      ? update(name ?? flags.checkpointName, flags)
      : joinByMetas(name ?? flags.checkpointName, flags, flags.loadMetasFile, given(command)))
  })
}

function addCheckpointOptions(command: Command): void {
  command
    .optionsGroup('Checkpoint:')
    .option(
      '--checkpoint-path <dir>',
      'directory of safetensors files; without it, what the daemon holds is used',
    )
    .option('--checkpoint-name <s>', 'name of the checkpoint', 'my-checkpoint-iter-0')
    .option('--weight-version <v>', 'what the engine shall call these weights')
    .option('--no-stream', 'send nothing before all files have been read')
    .option('--in-place', 'use the files where they lie instead of a copy')
    .option('--consume', 'like --in-place, and remove files in /dev/shm when they are loaded')
    .option('--save-metas-file <file>', 'write the metas as JSON after gathering')
    .option(
      '--load-metas-file <file>',
      'join the cluster whose metas these are, as `ckpt join` does: it holds the checkpoint',
    )
    .option('--cluster-token-file <file>', 'with --load-metas-file: the token of that cluster')
}

function addEngineOptions(command: Command): void {
  command
    .optionsGroup('Engine:')
    .option(
      '--endpoint <url>',
      `the engine; repeatable, one per group of ranks (default: ${DEFAULT_ENDPOINT})`,
      collect,
    )
    .option('--inference-parallel-size <n>', 'ranks of one engine', wholeNumber(1), 8)
    .option('--uds <path>', 'Unix socket of the engine; repeatable', collect)
    .addOption(choice('--engine <kind>', 'kind of engine', 'auto', 'vllm', 'sglang', 'lmdeploy'))
    .option(
      '--engine-method <name>',
      "method of vLLM's /collective_rpc, or native-ipc: its own weight transfer (default: whichever it has)",
    )
    .addOption(
      choice('--pause <how>', 'what happens to running requests', 'wait', 'none', 'keep', 'abort'),
    )
    .option('--ready-timeout <s>', 'seconds to wait for the engine; 0: for ever', seconds, 600)
    .option(
      '--pause-timeout <s>',
      `seconds that pausing may take (default: ${PAUSE_TIMEOUT_SECONDS})`,
      positiveNumber,
    )
}

function addUpdateOptions(command: Command): void {
  command
    .optionsGroup('Update:')
    .option(
      '--timeout <s>',
      `seconds that an update may take (default: ${UPDATE_TIMEOUT_SECONDS})`,
      positiveNumber,
    )
    .option(
      '--open-timeout <s>',
      `seconds until every worker has opened the ring (default: ${OPEN_TIMEOUT_SECONDS})`,
      positiveNumber,
    )
    .addOption(
      choice(
        '--mode <m>',
        'how the bytes travel: through a ring (pipelined, serial) or straight into an engine that has told where its weights lie (direct); auto takes direct where it can',
        'auto',
        'pipelined',
        'serial',
        'direct',
      ),
    )
    .addOption(choice('--if-busy <what>', 'while another update runs', 'wait', 'fail'))
    .addOption(
      choice(
        '--require <which>',
        "daemons that must be there; without some the survivors' engines are updated",
        'all',
        'survivors',
      ),
    )
    .addOption(
      choice(
        '--update-method <m>',
        'all ranks, or a part of them by p2p',
        'broadcast',
        'p2p',
        'all',
      ),
    )
    .option('--trace <file>', 'write when each stage had work, for Perfetto or chrome://tracing')
    .option(
      '--verify',
      'compare the checksums of an SGLang with those that it had of the same files before, or record them',
    )
    .option('--sleep-time <s>', 'stay for so many seconds afterwards', seconds, 0)
    .option('--custom-dist <name>', 'accepted and not needed: there is no torch.distributed here')
}

/** Options of the command line, such as `--mode`. */
function given(command: Command): string[] {
  return command.options.flatMap((option) => {
    const isGiven = command.getOptionValueSource(option.attributeName()) === 'cli'
    return isGiven ? (option.long ?? []) : []
  })
}

async function joinByMetas(
  name: string,
  flags: UpdateFlags,
  path: string,
  options: readonly string[],
): Promise<number> {
  configureLogging({ format: 'text', level: 'fatal' })
  return join(name, joinFlagsOf(name, flags, await loadMetas(path), options))
}

async function update(name: string, flags: UpdateFlags): Promise<number> {
  configureLogging({ format: 'text', level: 'fatal' })
  const startMs = performance.now()
  const progress = new Progress()
  const inputs = await readInputs(flags)
  const interrupt = interruptBySignal()
  const daemon = await reachDaemon(flags, inputs.notes)
  try {
    const job = await planJob(name, flags, inputs, daemon)
    const result = await runUpdateJob(daemon.client, job, progress, interrupt)
    if (flags.verify) result.verified = await verify(job, inputs, result, progress)
    if (flags.trace) await saveTrace(flags.trace, daemon.client, result)
    if (flags.saveMetasFile) await saveMetas(flags.saveMetasFile, await daemon.client.metas())
    result.seconds.total = (performance.now() - startMs) / 1000
    await print(flags.json === true, { ok: true, name, ...result, notes: inputs.notes }, () =>
      resultText(name, result, inputs.notes),
    )
    // other instances can join while this one stays
    await Promise.race([Bun.sleep(flags.sleepTime * 1000), interrupt.happened])
    return EXIT.done
  } finally {
    progress.clear()
    await daemon.close('`ckpt update` is done')
  }
}

/** The engines that have taken the last update that they were in. */
async function verify(
  { steps }: UpdateJob,
  { found }: Inputs,
  { updates }: JobResult,
  progress: Progress,
): Promise<VerifiedEngine[]> {
  const reports = updates.flatMap(({ engines }) => engines)
  const updated = new Set(reports.flatMap(({ url, result }) => (result === 'ok' ? [url] : [])))
  const engines = (steps[0]?.engines ?? []).filter(({ url }) => updated.has(url))
  progress.show('verify', "the engines' checksums")
  const startMs = performance.now()
  const verified = await verifyUpdate(engines, found)
  progress.done('verify', formatSeconds((performance.now() - startMs) / 1000))
  return verified
}

/** Of the last update of the job. */
async function saveTrace(
  path: string,
  client: DaemonClient,
  { updates }: JobResult,
): Promise<void> {
  await writeTrace(path, await client.trace(updates.at(-1)!.update_id))
}

interface Inputs {
  readonly files: RegisterRequest | null
  /** The safetensors files themselves. */
  readonly found: readonly string[]
  readonly notes: string[]
}

/** Everything that can be wrong with files is found before a daemon is started or asked. */
async function readInputs(flags: UpdateFlags): Promise<Inputs> {
  const notes: string[] = []
  requireFiles(flags)
  if (flags.customDist !== undefined) {
    notes.push(
      `--custom-dist ${flags.customDist} is not needed: there is no torch.distributed here`,
    )
  }
  if (flags.checkpointPath === undefined) return { files: null, found: [], notes }
  const found = await findCheckpointFiles(flags.checkpointPath)
  // whoever asks to consume is told what was not removed
  const wait = !flags.stream || flags.consume === true
  const files: RegisterRequest = { files: [...found.sources], replace: true, wait }
  if (flags.inPlace) files.in_place = true
  if (flags.consume) files.consume = true
  if (flags.weightVersion !== undefined) files.version = flags.weightVersion
  return { files, found: found.files, notes }
}

function requireFiles(flags: UpdateFlags): void {
  if (!flags.verify) return
  if (flags.checkpointPath === undefined) {
    throw usageError('--verify knows a checkpoint by its files: it needs --checkpoint-path')
  }
  if (flags.consume) throw usageError('--verify reads the files, which --consume removes')
}

interface ReachedDaemon {
  readonly client: DaemonClient
  close(reason: string): Promise<void>
}

/** The daemon that was named, else the one of the default socket, else one in this process. */
async function reachDaemon(flags: UpdateFlags, notes: string[]): Promise<ReachedDaemon> {
  const client = new Client(daemonAddress(flags.daemon, flags.tokenFile))
  if (flags.daemon !== undefined || (await client.answers()))
    return { client, close: async () => {} }
  if (flags.consume) {
    throw usageError(
      '--consume needs a running daemon: one that runs only for this call would end with the only copy of the files',
    )
  }
  if (flags.checkpointPath === undefined) {
    throw usageError('no daemon runs and there is no --checkpoint-path: nothing to update from')
  }
  const endpoints = endpointsOf(flags)
  notes.push(`no daemon runs at ${addressText(client.address)}: one was run for this call`)
  return startLocalDaemon(endpoints, {
    devices: flags.devices,
    ranks: endpoints.length * flags.inferenceParallelSize,
    ringGib: flags.ringGib ?? null,
    bucketMib: flags.bucketMib ?? null,
    hostMemoryGib: flags.hostMemoryGib ?? null,
    allowEngines: endpoints.map((endpoint) => endpoint.replaceAll('{host}', 'localhost')),
  })
}

function endpointsOf(flags: UpdateFlags): string[] {
  return flags.endpoint ?? [DEFAULT_ENDPOINT]
}

async function planJob(
  name: string,
  flags: UpdateFlags,
  inputs: Inputs,
  daemon: ReachedDaemon,
): Promise<UpdateJob> {
  const status = await daemon.client.status()
  const lost = requireDaemons(status.cluster, flags.require)
  const targets = engineTargets(
    {
      endpoints: endpointsOf(flags),
      sockets: flags.uds ?? [],
      engine: flags.engine,
      parallelSize: flags.inferenceParallelSize,
    },
    status.ranks.length + lost.length,
    status.cluster?.nodes ?? 1,
  )
  const urls = targets.map((target) => target.url)
  const seen = seesSameHosts(daemon.client, urls)
  const all: UpdateStep = { engines: targets }
  const first: UpdateStep = { engines: [targets[0]], ranks: targets[0].ranks }
  const method = flags.updateMethod
  return {
    name,
    files: inputs.files,
    steps: method === 'broadcast' ? [all] : method === 'p2p' ? [first] : [all, first],
    request: updateRequest(flags),
    readyTimeoutMs: flags.readyTimeout * 1000,
    waitFor: targets.filter(({ ranks }) => seen && !ranks.some((rank) => lost.includes(rank))),
    pauseMs: BETWEEN_UPDATES_MS,
  }
}

/** `localhost` of a daemon on another host is not ours: that daemon waits for its engines itself. */
function seesSameHosts(client: DaemonClient, urls: readonly string[]): boolean {
  const isOurs = (url: string) => isLoopback(new URL(url))
  const { unix, base } = client.address
  return unix !== null || isOurs(base) || !urls.some(isOurs)
}

function updateRequest(flags: UpdateFlags): UpdateRequest {
  const {
    pause,
    mode,
    ifBusy,
    require,
    engineMethod,
    pauseTimeout,
    openTimeout,
    timeout,
    weightVersion,
  } = flags
  return {
    pause,
    mode,
    if_busy: ifBusy,
    require,
    ...(engineMethod === undefined ? {} : { engine_method: engineMethod }),
    ...(pauseTimeout === undefined ? {} : { pause_timeout: pauseTimeout }),
    ...(openTimeout === undefined ? {} : { open_timeout: openTimeout }),
    ...(timeout === undefined ? {} : { timeout }),
    ...(weightVersion === undefined ? {} : { weight_version: weightVersion }),
  }
}
