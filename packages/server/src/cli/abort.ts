import type { Command } from 'commander'
import { clientOf, type DaemonFlags, withDaemon } from './options.ts'
import { print } from './output.ts'

export function addAbortCommand(program: Command): void {
  withDaemon(program.command('abort'))
    .description('end a running update; its engines are released')
    .argument('<id>', 'id of the update, as `ckpt status` shows it')
    .option('--reason <text>', 'what the report will say', 'aborted by `ckpt abort`')
    .action(async (id: string, flags: DaemonFlags & { reason: string }) => {
      const state = await clientOf(flags).abort(id, flags.reason)
      await print(flags.json === true, state, () =>
        state.state === 'running' || state.state === 'queued'
          ? `update ${id} is being aborted; its engines are released`
          : `update ${id} is ${state.state}`,
      )
    })
}
