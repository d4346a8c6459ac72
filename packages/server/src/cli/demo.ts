import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { EngineWeights, RegisterAnswer, UpdateReport } from '@ckpt/core'
import { type Command, Option } from 'commander'
import { type ChildProcess, startCommand } from './child-process.ts'
import { DaemonClient, daemonAddress } from './client.ts'
import { type DemoCheckpoint, demoCheckpoint } from './demo-checkpoint.ts'
import { formatBytes, formatSeconds } from './format.ts'
import { withJson } from './options.ts'
import { print } from './output.ts'
import { Progress } from './progress.ts'
import { stageTable } from './stage-table.ts'
import { type JobSeconds, registerStage, runUpdateJob } from './update-job.ts'
import { expectedTensors, verifyEngine } from './verify-engine.ts'

interface DemoFlags {
  checkpointPath?: string
  devices: string
  json?: boolean
}

interface DemoVersion {
  readonly version: string
  readonly report: UpdateReport
  readonly seconds: JobSeconds
  readonly registered: RegisterAnswer
  readonly verified_tensors: number
  readonly verified_bytes: number
}

const TENSOR_PARALLEL_SIZE = 2

export function addDemoCommand(program: Command): void {
  withJson(program.command('demo'))
    .description('the main job with everything started for you, and every byte verified')
    .option(
      '--checkpoint-path <dir>',
      'a real model instead of a generated one; its files are only read',
    )
    .addOption(
      new Option('--devices <kind>', "where the engine's weights lie")
        .choices(['auto', 'host', 'cuda'])
        .default('host'),
    )
    .action(demo)
}

async function demo(flags: DemoFlags): Promise<void> {
  const startMs = performance.now()
  const progress = new Progress()
  const directory = mkdtempSync(join(tmpdir(), 'ckpt-demo-'))
  const interrupt = new AbortController()
  const onSignal = () => interrupt.abort()
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  try {
    const checkpoint = await demoCheckpoint(directory, flags.checkpointPath)
    const versions = await runDemo(checkpoint, directory, flags.devices, progress, interrupt.signal)
    const seconds = (performance.now() - startMs) / 1000
    const document = {
      ok: true,
      devices: flags.devices,
      checkpoint: checkpoint.text,
      same_files: checkpoint.sameFiles,
      tensor_parallel_size: TENSOR_PARALLEL_SIZE,
      versions,
      seconds,
    }
    await print(flags.json === true, document, () => demoText(checkpoint, versions, seconds))
  } finally {
    progress.clear()
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
    rmSync(directory, { recursive: true, force: true })
  }
}

/** Daemon and engine are processes of their own; they end on every path. */
async function runDemo(
  checkpoint: DemoCheckpoint,
  directory: string,
  devices: string,
  progress: Progress,
  signal: AbortSignal,
): Promise<DemoVersion[]> {
  const startMs = performance.now()
  const size = String(TENSOR_PARALLEL_SIZE)
  const socket = join(directory, 'ckpt.sock')
  const serve = ['serve', '--uds', socket, '--state-dir', join(directory, 'state'), '--ranks', size]
  const engine = ['engine', '--listen', '127.0.0.1:0', '--tensor-parallel-size', size]
  progress.show('start', 'daemon, engine and checkpoint')
  const children = await Promise.allSettled([
    startCommand([...serve, '--devices', devices], /"ready": ?true/),
    startCommand([...engine, '--devices', devices], /"url": ?"([^"]+)"/),
  ])
  const started = children.flatMap((child) => (child.status === 'fulfilled' ? [child.value] : []))
  try {
    for (const child of children) if (child.status === 'rejected') throw child.reason
    const [, engineProcess] = started as [ChildProcess, ChildProcess]
    progress.done('start', formatSeconds((performance.now() - startMs) / 1000))
    const client = new DaemonClient(daemonAddress(socket))
    const versions: DemoVersion[] = []
    for (const number of [1, 2] as const) {
      versions.push(
        await loadVersion(number, checkpoint, client, engineProcess.ready, progress, signal),
      )
    }
    return versions
  } finally {
    await Promise.all(started.map((child) => child.stop()))
  }
}

async function loadVersion(
  number: 1 | 2,
  checkpoint: DemoCheckpoint,
  client: DaemonClient,
  url: string,
  progress: Progress,
  signal: AbortSignal,
): Promise<DemoVersion> {
  const version = String(number)
  progress.show('checkpoint', `version ${version}`)
  const startMs = performance.now()
  const files = [...(await checkpoint.version(number))]
  progress.done(
    'checkpoint',
    `${formatSeconds((performance.now() - startMs) / 1000)}  version ${version}`,
  )
  const ranks = Array.from({ length: TENSOR_PARALLEL_SIZE }, (_, rank) => rank)
  const engine = { url, ranks }
  const job = {
    name: 'demo',
    files: { files, replace: true, wait: false, version },
    steps: [{ engines: [engine] }],
    request: { pause: 'wait', weight_version: version },
    readyTimeoutMs: 30_000,
    waitFor: [engine],
    pauseMs: 0,
  } as const
  const { updates, seconds, registered } = await runUpdateJob(client, job, progress, { signal })
  progress.show('verify', 'every byte of the engine against the files')
  const verifyMs = performance.now()
  const [weights, expected] = await Promise.all([
    fetch(`${url}/v1/weights`, { proxy: false, timeout: false }).then(
      (r) => r.json() as Promise<EngineWeights>,
    ),
    expectedTensors(files, TENSOR_PARALLEL_SIZE),
  ])
  const verified = verifyEngine(weights, expected, TENSOR_PARALLEL_SIZE)
  const verifySeconds = (performance.now() - verifyMs) / 1000
  progress.done(
    'verify',
    `${formatSeconds(verifySeconds)}  ${verified.tensors} tensors  ${formatBytes(verified.bytes)}`,
  )
  return {
    version,
    report: updates[0]!,
    seconds,
    registered: registered!,
    verified_tensors: verified.tensors,
    verified_bytes: verified.bytes,
  }
}

function demoText(
  checkpoint: DemoCheckpoint,
  versions: readonly DemoVersion[],
  seconds: number,
): string {
  const lines = [`checkpoint: ${checkpoint.text}`]
  for (const { version, report, seconds: s, registered, ...verified } of versions) {
    const before = [
      registerStage(registered, s.register),
      { name: 'ready', seconds: s.ready, bytes: 0 },
      { name: 'gather', seconds: s.gather, bytes: 0 },
    ]
    lines.push(
      '',
      `version ${version}: ${report.tensors} tensors, ${formatBytes(report.bytes)}, ${report.ranks} ranks`,
      stageTable(report, before, s.total),
      `verified: ${verified.verified_tensors} tensors, ${formatBytes(verified.verified_bytes)} in the engine equal the files`,
    )
  }
  lines.push('', `ok, ${seconds.toFixed(1)} s`)
  return lines.join('\n')
}
