import { type Layout, parseLayout } from './layout.ts'

/** What the user has to correct: exit status 2. */
export class UsageError extends Error {}

export const PARTS = ['a', 'b', 'c', 'd'] as const
export type Part = (typeof PARTS)[number]

export interface Options {
  readonly help: boolean
  readonly devices: 'cuda' | 'host'
  readonly only: readonly Part[]
  /** Of each daemon's part of the checkpoint. */
  readonly mib: number
  /** Null: what the machine has GPUs for. */
  readonly layouts: readonly Layout[] | null
  readonly updates: number
  /** Of everything. */
  readonly seconds: number
  /** Of one layout. */
  readonly layoutSeconds: number
  /** A file; null: none. */
  readonly json: string | null
}

export const USAGE = `usage: scripts/gpu-cluster [--devices cuda|host] [--only a b c d] [--layouts 1+1 2+2 4+4 1/1] [--mib N] [--json FILE]

  a  whole updates of two daemons by NCCL, each with a part of the checkpoint
  b  reads of another daemon's memory (UCX), in turn with broadcasts, and an engine that joins
  c  the follower is killed in the middle of a broadcast
  d  direct updates: each host reads once what its ranks need of the other's memory

  --devices D          cuda (default), or host, which needs no GPU
  --only PART...       these parts (default: all)
  --layouts LAYOUT...  ranks of leader and follower on one GPU (2+2), or with a GPU for each daemon (1/1); of b the first;
                       default: 1+1 2+2 4+4, c 1+1 2+2; with two GPUs 1/1 before or in place of 1+1
  --mib N              of each daemon's part (default 512)
  --updates N          of each layout (default 3)
  --seconds N          that everything may take (default 200)
  --layout-seconds N   that one layout may take before it is killed (default 45)
  --json FILE          the rows, written anew after each, and once before anything is done
`

const FLAGS = [
  '--devices',
  '--only',
  '--layouts',
  '--mib',
  '--updates',
  '--seconds',
  '--layout-seconds',
  '--json',
]
const NUMBER_MAX = 1_000_000

/** Each flag takes the words up to the next one. @throws UsageError */
export function parseOptions(args: readonly string[]): Options {
  const help = args.includes('--help')
  const flags = flagsOf(args.filter((word) => word !== '--help'))
  const one = (name: string, otherwise: string) => {
    const [word, ...more] = flags.get(name) ?? [otherwise]
    if (word === undefined || more.length > 0) throw new UsageError(`${name} takes one word`)
    return word
  }
  const number = (name: string, otherwise: number) => {
    const value = Number(one(name, String(otherwise)))
    if (Number.isSafeInteger(value) && value >= 1 && value <= NUMBER_MAX) return value
    throw new UsageError(`${name} takes a number from 1 on`)
  }
  const devices = one('--devices', 'cuda')
  if (devices !== 'cuda' && devices !== 'host') throw new UsageError('--devices: cuda or host')
  return {
    help,
    devices,
    only: (flags.get('--only') ?? PARTS).map(partOf),
    mib: number('--mib', 512),
    layouts: flags.get('--layouts')?.map(parseLayout) ?? null,
    updates: number('--updates', 3),
    seconds: number('--seconds', 200),
    layoutSeconds: number('--layout-seconds', 45),
    json: flags.has('--json') ? one('--json', '') : null,
  }
}

function partOf(word: string): Part {
  const part = PARTS.find((name) => name === word)
  if (part === undefined) throw new UsageError(`there is no part '${word}'`)
  return part
}

function flagsOf(args: readonly string[]): Map<string, string[]> {
  const flags = new Map<string, string[]>()
  let words: string[] | null = null
  for (const word of args) {
    if (FLAGS.includes(word)) flags.set(word, (words = []))
    else if (words === null || word.startsWith('--')) throw new UsageError(`what is '${word}'?`)
    else words.push(word)
  }
  return flags
}
