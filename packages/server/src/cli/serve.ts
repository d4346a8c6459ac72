import { CkptError } from '@ckpt/core'
import { type Command, Option } from 'commander'
import { configureLogging } from '../daemon/log.ts'
import type { ServeOptions } from '../daemon/options.ts'
import { BROADCAST_CHOICES, SERVE_DEFAULTS } from '../daemon/options.ts'
import { SPIN_CHOICES } from '../daemon/rank/spin.ts'
import { DaemonClient, daemonAddress } from './client.ts'
import { EXIT, usageError } from './exit.ts'
import { followLocalDaemon, isFurtherLocalRank } from './local-rank.ts'
import { endWithNpx } from './npx-parent.ts'
import { collect, positiveNumber, wholeNumber, withJson } from './options.ts'
import { printText } from './output.ts'
import { supervise } from './supervise.ts'

/** A terminal and systemd signal the supervisor and the daemon, and the supervisor passes it on. */
const SAME_SIGNAL_MS = 1000

type ServeFlags = Partial<{ -readonly [K in keyof ServeOptions]: NonNullable<ServeOptions[K]> }> & {
  allowDir?: string[]
  allowEngine?: string[]
  supervise?: boolean
  logJson?: boolean
  json?: boolean
}

export function addServeCommand(program: Command): void {
  const command = withJson(program.command('serve'))
    .description('run the daemon: hold checkpoints in pinned memory and update engines')
    .option(
      '--uds <path>',
      'Unix socket to listen at (default: a private one in XDG_RUNTIME_DIR or /tmp)',
    )
    .option('--listen <host:port>', 'listen on TCP; needs --token-file')
    .option('--token-file <file>', 'file with the token that TCP clients must send')
    .option('--rank-sockets <pattern>', 'a Unix socket for each rank, such as /run/rank-%d.sock')
    .option('--devices <spec>', 'auto, host, host:D, cuda or cuda:0,2', SERVE_DEFAULTS.devices)
    .option('--ranks <n>', 'ranks of this daemon (default: one per device)', wholeNumber(1))
    .option('--allow-dir <dir>', 'directory that files may be registered from; repeatable', collect)
    .option('--allow-engine <url>', 'engine that may be contacted; repeatable', collect)
    .option('--host-memory-gib <n>', 'most GiB of pinned host memory', positiveNumber)
    .option('--evict', 'drop the checkpoints not used for longest when a new one does not fit')
    .option('--ring-gib <n>', 'GiB of device memory for the ring', positiveNumber)
    .option('--bucket-mib <n>', 'most MiB of a bucket', positiveNumber)
    .addOption(
      new Option('--in-place <when>', 'use files where they lie instead of a copy')
        .choices(['never', 'always', 'consume'])
        .default(SERVE_DEFAULTS.inPlace),
    )
    .addOption(
      new Option('--spin <when>', 'keep a processor per rank busy while an update moves')
        .choices(SPIN_CHOICES)
        .default(SERVE_DEFAULTS.spin),
    )
    .addOption(
      new Option('--broadcast <how>', 'how ranks bring each other their buckets')
        .choices(BROADCAST_CHOICES)
        .default(SERVE_DEFAULTS.broadcast),
    )
    .option(
      '--idle-communicator-seconds <s>',
      'how long a communicator of NCCL is kept without an update',
      positiveNumber,
      SERVE_DEFAULTS.idleCommunicatorSeconds,
    )
    .option('--state-dir <dir>', 'private directory for the journal and engine sockets')
    .option(
      '--leader <host:port>',
      "where the daemon of node rank 0 listens for the others; 'env': from MASTER_ADDR, MASTER_PORT + 1, and what torchrun, Slurm or Kubernetes set",
    )
    .option('--node-rank <k>', 'which of --nodes this is; 0 is the leader', wholeNumber(0))
    .option('--nodes <n>', 'daemons that work together; above 1 needs a token', wholeNumber(1))
    .option('--cluster-token-file <file>', 'file with the token that all daemons of --nodes have')
    .option('--supervise', 'start the daemon again when its device is lost (exit status 4)')
    .option('--log-json', 'log lines as JSON')
  command.action(async (flags: ServeFlags) => {
    if (flags.supervise) process.exitCode = await supervise()
    else process.exitCode = await runDaemon(flags)
  })
}

export function serveOptions(flags: ServeFlags): ServeOptions {
  const { allowDir, allowEngine, supervise: _s, logJson: _l, json: _j, ...rest } = flags
  return {
    ...SERVE_DEFAULTS,
    ...rest,
    allowDirs: allowDir ?? null,
    allowEngines: allowEngine ?? null,
  }
}

async function runDaemon(flags: ServeFlags): Promise<number> {
  configureLogging({ format: flags.logJson ? 'json' : 'text', level: 'info' })
  const options = serveOptions(flags)
  if (options.listen !== null && options.tokenFile === null) {
    throw usageError('--listen needs --token-file: whoever reaches the port could load weights')
  }
  if (isFurtherLocalRank(options.leader)) {
    const at = options.uds ?? (options.listen === null ? undefined : `http://${options.listen}`)
    const client = new DaemonClient(daemonAddress(at, options.tokenFile ?? undefined))
    await followLocalDaemon(client, stopSignal())
    return EXIT.done
  }
  // the daemon's modules take a moment to load, and no other command needs them
  const { serve } = await import('../daemon/serve.ts')
  const stopped = stopSignal()
  const daemon = await serve(options)
  const { address, addresses } = daemon
  const ready = { ready: true, address, addresses, pid: process.pid }
  await printText(flags.json ? JSON.stringify(ready) : `ckpt is ready at ${addresses.join(', ')}`)
  const end = await Promise.race([stopped, daemon.deviceLost])
  if (typeof end === 'string') {
    await daemon.close(`the daemon got ${end}`)
    return EXIT.done
  }
  await daemon.close(end.message)
  throw CkptError.from(end)
}

/** Resolves at the first SIGTERM or SIGINT; a later one ends the process at once. */
function stopSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let askedMs: number | null = null
    const stop = (signal: NodeJS.Signals) => {
      const nowMs = performance.now()
      if (askedMs !== null && nowMs - askedMs >= SAME_SIGNAL_MS) process.exit(EXIT.failed)
      askedMs ??= nowMs
      resolve(signal)
    }
    process.on('SIGTERM', stop)
    process.on('SIGINT', stop)
    endWithNpx(() => process.kill(process.pid, 'SIGTERM'))
  })
}
