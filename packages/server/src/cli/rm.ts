import type { Command } from 'commander'
import { clientOf, type DaemonFlags, withDaemon } from './options.ts'
import { print } from './output.ts'

export function addRmCommand(program: Command): void {
  withDaemon(program.command('rm'))
    .description('drop a checkpoint; its files stay')
    .argument('<name>', 'a checkpoint')
    .option(
      '--force',
      'return its pinned memory to the system instead of keeping it for the next one',
    )
    .action(async (name: string, flags: DaemonFlags & { force?: boolean }) => {
      const answer = await clientOf(flags).drop(name, flags.force === true)
      const text = answer.existed ? `${name} is dropped` : `there was no checkpoint ${name}`
      await print(flags.json === true, answer, () => text)
    })
}
