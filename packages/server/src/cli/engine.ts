import type { Dialect } from '@ckpt/core'
import { type Command, Option } from 'commander'
import { describeFaults } from '../engines/reference/faults.ts'
import { SHARDED_BY, type ShardedBy } from '../engines/reference/shard.ts'
import { EXIT } from './exit.ts'
import { collect, wholeNumber, withJson } from './options.ts'
import { endWithNpx } from './npx-parent.ts'
import { printText } from './output.ts'

interface EngineFlags {
  readonly listen: string
  readonly tensorParallelSize: number
  readonly shard: ShardedBy
  readonly devices: string
  readonly dialect: Dialect
  readonly fault?: string[]
  readonly tellDevices?: boolean
  readonly direct?: boolean
  readonly json?: boolean
}

export function addEngineCommand(program: Command): void {
  withJson(program.command('engine'))
    .description('run the reference engine, which takes updates as vLLM, SGLang and LMDeploy do')
    .option(
      '--listen <host:port>',
      'HOST:PORT (port 0: any free one) or unix:/path',
      '127.0.0.1:19730',
    )
    .option(
      '--tensor-parallel-size <n>',
      'ranks, each with a shard of every tensor',
      wholeNumber(1),
      1,
    )
    .addOption(
      new Option(
        '--shard <by>',
        'what the ranks split: rows, columns, either as models do it, or that and whole experts',
      )
        .choices(SHARDED_BY)
        .default('rows'),
    )
    .option('--devices <spec>', 'auto, host, host:D, cuda or cuda:0,2', 'auto')
    .addOption(
      new Option('--dialect <d>', "generation of checkpoint-engine's worker")
        .choices(['D1', 'D2', 'D3', 'D4'])
        .default('D4'),
    )
    .option('--fault <kind@place>', 'misbehave, for tests; repeatable', collect)
    .option('--tell-devices', 'answer GET /update_weights_from_ipc with the devices, as LMDeploy')
    .option(
      '--direct',
      "answer and take direct updates as an engine with ckpt_worker's extension does",
    )
    .addHelpText('after', `\nFaults:\n${describeFaults()}`)
    .action(async (flags: EngineFlags) => {
      process.exitCode = await runEngine(flags)
    })
}

async function runEngine(flags: EngineFlags): Promise<number> {
  const { runReferenceEngine } = await import('../engines/reference/index.ts')
  const {
    listen,
    tensorParallelSize,
    shard: shardedBy,
    devices,
    dialect,
    fault,
    tellDevices,
    direct,
  } = flags
  const stopped = new Promise<void>((resolve) => {
    process.once('SIGTERM', () => resolve())
    process.once('SIGINT', () => resolve())
    endWithNpx(resolve)
  })
  const engine = await runReferenceEngine({
    listen,
    tensorParallelSize,
    shardedBy,
    devices,
    dialect,
    faults: fault ?? [],
    tellDevices,
    direct,
  })
  const ready = { ready: true, url: engine.url, keys: engine.keys, pid: process.pid }
  await printText(flags.json ? JSON.stringify(ready) : `the engine is ready at ${engine.url}`)
  await stopped
  await engine.close()
  return EXIT.done
}
