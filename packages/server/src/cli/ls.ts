import type { CheckpointDetail, CheckpointSummary } from '@ckpt/core'
import type { Command } from 'commander'
import { formatBytes, formatTable } from './format.ts'
import { clientOf, type DaemonFlags, withDaemon } from './options.ts'
import { print } from './output.ts'

export function addLsCommand(program: Command): void {
  withDaemon(program.command('ls'))
    .description('what the daemon holds; with a name, the tensors of that checkpoint')
    .argument('[name]', 'a checkpoint')
    .action(async (name: string | undefined, flags: DaemonFlags) => {
      const client = clientOf(flags)
      if (name === undefined) {
        const answer = await client.list()
        await print(flags.json === true, answer, () => listText(answer.checkpoints))
      } else {
        const detail = await client.describe(name)
        await print(flags.json === true, detail, () => detailText(detail))
      }
    })
}

function listText(checkpoints: readonly CheckpointSummary[]): string {
  if (checkpoints.length === 0) return 'no checkpoints are held'
  return formatTable([
    ['name', 'version', 'state', 'tensors', 'bytes', 'in place', 'in use', 'digest'],
    ...checkpoints.map((c) => [
      c.name,
      c.version ?? '-',
      c.state,
      String(c.tensors),
      formatBytes(c.bytes),
      c.in_place ? 'yes' : 'no',
      c.in_use ? 'yes' : 'no',
      c.digest.slice(0, 12),
    ]),
  ])
}

function detailText(detail: CheckpointDetail): string {
  const rows = detail.tensor_list.map((tensor) => [
    tensor.name,
    tensor.dtype,
    `[${tensor.shape.join(', ')}]`,
    formatBytes(tensor.bytes),
  ])
  return [
    listText([detail]),
    '',
    ...detail.files,
    '',
    formatTable([['tensor', 'dtype', 'shape', 'bytes'], ...rows]),
  ].join('\n')
}
