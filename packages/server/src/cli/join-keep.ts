import { resolve } from 'node:path'
import { CkptError, type RegisterAnswer } from '@ckpt/core'
import { SERVE_DEFAULTS } from '../daemon/options.ts'
import type { RunningDaemon } from '../daemon/serve.ts'
import { isLoopback } from '../engines/url.ts'
import { addressText, DaemonClient, daemonAddress } from './client.ts'
import { EXIT, usageError } from './exit.ts'
import { formatBytes, formatRate, formatSeconds } from './format.ts'
import { interruptBySignal } from './interrupt.ts'
import type { JoinFlags } from './join.ts'
import { joinJob } from './join-job.ts'
import { print, printText } from './output.ts'
import { Progress } from './progress.ts'
import { type Interrupt, loaded, orInterrupt, registerNotes, runUpdateJob } from './update-job.ts'
import { resultText } from './update-text.ts'

/**
 * `ckpt join --keep`: a daemon of this host copies the checkpoint into its own memory, and updates the engine from there. Where none
 * runs, this process is one, until it is ended.
 */
export async function joinAndKeep(name: string, flags: JoinFlags): Promise<number> {
  const startMs = performance.now()
  const progress = new Progress()
  const interrupt = interruptBySignal()
  const client = new DaemonClient(daemonAddress(flags.daemon))
  const runs = await client.answers()
  if (runs) requireNotServing(client, flags)
  const started = runs ? null : await startDaemon(client, flags)
  try {
    const registered = await pull(client, name, flags, progress, interrupt)
    const ranks = Array.from({ length: flags.inferenceParallelSize }, (_, rank) => rank)
    const result = await runUpdateJob(client, joinJob(name, flags, ranks), progress, interrupt)
    result.seconds.register = registered.seconds
    result.seconds.total = (performance.now() - startMs) / 1000
    const notes = [keptNote(client, registered), ...registerNotes(registered)]
    await print(flags.json === true, { ok: true, name, ...result, registered, notes }, () =>
      resultText(name, result, notes),
    )
    if (started !== null) await stay(started, flags, interrupt)
    return EXIT.done
  } finally {
    progress.clear()
    await started?.close('`ckpt join --keep` was ended')
  }
}

function keptNote({ address }: DaemonClient, { bytes, seconds }: RegisterAnswer): string {
  const took = `${formatBytes(bytes)} in ${formatSeconds(seconds)}`
  return `the daemon at ${addressText(address)} holds a copy (${took}, ${formatRate(bytes, seconds)} GB/s)`
}

/** What a daemon that runs was told when it was started. @throws CommandError `bad_request` */
function requireNotServing({ address }: DaemonClient, flags: JoinFlags): void {
  const { devices, ringGib, hostMemoryGib } = flags
  const told = { '--devices': devices, '--ring-gib': ringGib, '--host-memory-gib': hostMemoryGib }
  const given = Object.entries(told).flatMap(([flag, value]) => (value === undefined ? [] : [flag]))
  if (given.length === 0) return
  throw usageError(
    `the daemon at ${addressText(address)} runs already, with its own devices and limits: leave out ${given.join(' and ')}, or end it first`,
  )
}

/** At the address that other commands look for it at. */
async function startDaemon(client: DaemonClient, flags: JoinFlags): Promise<RunningDaemon> {
  const { unix } = client.address
  const { endpoint, uds } = flags
  if (unix === null) {
    throw usageError(
      `--daemon ${flags.daemon}: no daemon answers there, and one is started at a Unix socket only`,
    )
  }
  // the daemon's modules take a moment to load, and with a running daemon they are not needed
  const { serve } = await import('../daemon/serve.ts')
  return serve({
    ...SERVE_DEFAULTS,
    devices: flags.devices ?? SERVE_DEFAULTS.devices,
    ranks: flags.inferenceParallelSize,
    ringGib: flags.ringGib ?? null,
    hostMemoryGib: flags.hostMemoryGib ?? null,
    // else those of this host
    allowEngines: uds !== undefined || isLoopback(new URL(endpoint)) ? null : [endpoint],
    uds: unix,
  })
}

function pull(
  client: DaemonClient,
  name: string,
  flags: JoinFlags,
  progress: Progress,
  interrupt: Interrupt,
): Promise<RegisterAnswer> {
  const { leader, clusterTokenFile, checkpointVersion, joinTimeout, timeout } = flags
  const request = {
    leader,
    cluster_token_file: resolve(clusterTokenFile),
    replace: true,
    join_timeout: joinTimeout,
    ...(checkpointVersion === undefined ? {} : { version: checkpointVersion }),
    ...(timeout === undefined ? {} : { timeout }),
  }
  const work = orInterrupt(interrupt, client.pull(name, request, interrupt.signal))
  return loaded(progress, 'pull', `from the daemons whose leader is at ${leader}`, work)
}

/** Holds the copy until it is ended. @throws CkptError `device_lost` */
async function stay(
  { deviceLost }: RunningDaemon,
  { json }: JoinFlags,
  { signal }: Interrupt,
): Promise<void> {
  if (json !== true) await printText('the copy is held until this command is ended (Ctrl-C)')
  const ended = Promise.withResolvers<null>()
  signal.addEventListener('abort', () => ended.resolve(null))
  if (signal.aborted) return
  const lost = await Promise.race([ended.promise, deviceLost])
  if (lost !== null) throw CkptError.from(lost)
}
