import type { EngineMapAnswer, EngineMapQuery, PlacedCopy } from '@ckpt/core'
import type { Command } from 'commander'
import { formatBytes, formatTable, printable } from './format.ts'
import { clientOf, type DaemonFlags, withDaemon } from './options.ts'
import { print } from './output.ts'

interface EngineMapFlags extends DaemonFlags {
  readonly uds?: string
  readonly tensor?: string
}

export function addEngineMapCommand(program: Command): void {
  withDaemon(program.command('engine-map'))
    .description('where an engine that takes direct updates has told its weights lie')
    .argument('<url>', 'the engine, as `ckpt status` shows it')
    .option('--uds <path>', 'Unix socket that the engine listens at')
    .option('--tensor <name>', 'show the copies of this tensor too')
    .action(async (url: string, flags: EngineMapFlags) => {
      const { uds, tensor, json } = flags
      const query: EngineMapQuery = {
        url,
        ...(uds === undefined ? {} : { uds }),
        ...(tensor === undefined ? {} : { tensor }),
      }
      const answer = await clientOf(flags).engineMap(query)
      await print(json === true, answer, () => engineMapText(answer))
    })
}

/** For people. */
export function engineMapText({ tensor, ranks }: EngineMapAnswer): string {
  const sections = [
    formatTable([
      ['rank', 'tensors', 'copies', 'bytes', 'allocations', 'allocated', 'digest'],
      ...ranks.map((rank) => [
        String(rank.rank),
        String(rank.tensors),
        String(rank.copies),
        formatBytes(rank.bytes),
        String(rank.allocations.length),
        formatBytes(rank.allocations.reduce((sum, bytes) => sum + bytes, 0)),
        rank.digest.slice(0, 12),
      ]),
    ]),
  ]
  if (tensor !== undefined) {
    const { name, dtype, shape } = tensor
    sections.push('', printable(`${name}: ${dtype} [${shape.join(', ')}]`), '', copiesText(ranks))
  }
  return sections.join('\n')
}

/** Offsets, runs and strides are bytes, whole ones: people compare them. */
function copiesText(ranks: EngineMapAnswer['ranks']): string {
  return formatTable([
    ['rank', 'from', 'bytes', 'allocation', 'to', 'sizes', 'strides from', 'strides to'],
    ...ranks.flatMap(({ rank, placed = [] }) =>
      placed.length === 0
        ? [[String(rank), ...Array<string>(7).fill('-')]]
        : placed.map((copy) => [
            ...[rank, copy.source, copy.run, copy.allocation, copy.destination].map(String),
            ...dimensionsText(copy),
          ]),
    ),
  ])
}

/** Sizes and strides of the dimensions that have more than one index. */
function dimensionsText({ sizes, source_strides: from, destination_strides: to }: PlacedCopy) {
  const long = [...sizes.keys()].filter((dimension) => sizes[dimension] !== 1)
  if (long.length === 0) return ['-', '-', '-']
  const text = (values: readonly number[]) => long.map((d) => values[d]).join(' x ')
  return [text(sizes), text(from), text(to)]
}
