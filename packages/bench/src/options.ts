import { BENCHES } from './benches.ts'
import { COPY_BYTES_LEAST, GIB, KIB, MIB } from './bench.ts'
import { WORKLOAD_MODELS } from './workloads.ts'

export interface BenchOptions {
  /** As they were given. */
  readonly args: readonly string[]
  readonly json: boolean
  readonly help: boolean
  /** Names of benches. */
  readonly only: readonly string[]
  readonly devices: string
  /** Bytes. */
  readonly sizes: readonly number[]
  readonly models: readonly string[]
  readonly python: string
  readonly wheels: string | null
  readonly trace: string
}

/** What the user has to correct: exit status 2. */
export class UsageError extends Error {}

const DEFAULT_MIB = ['1', '16']
const DEFAULT_TRACE = 'update-trace.json'
const MIB_MAX = 65_536
const UNIT_BYTES: Readonly<Record<string, number>> = { K: KIB, M: MIB, G: GIB }

export const USAGE = `usage: bun run bench [--json] [--only NAME...] [--devices SPEC] [--mib N... | --sizes SIZE...] [--model NAME...]

  --json           one JSON document on stdout instead of the table
  --only NAME...   these benches: ${BENCHES.map(({ name }) => name).join(', ')}
  --devices SPEC   host (default), host:D, cuda, cuda:I,J, auto; plan, pickle and conversation use none
  --mib N...       sizes in MiB (default ${DEFAULT_MIB.join(' ')}) of register, h2d, broadcast, reload, direct, update, fresh and trainer
  --sizes SIZE...  the same as powers of two: 64K, 16M, 1G; 64K..1G is each of them from one to the other
  --model NAME...  direct, update, fresh, peers, trainer and trace with the tensors of these models instead: ${WORKLOAD_MODELS.join(', ')}
  --python PATH    peers, trainer: a Python with torch, for CUDA with a GPU (default: $CKPT_PYTHON, else python3)
  --wheels DIR     peers: install checkpoint-engine from these wheels instead of PyPI
  --trace FILE     trace: the file to write (default ${DEFAULT_TRACE})
`

/** Each flag takes the words up to the next one. Throws {@link UsageError}. */
export function parseOptions(args: readonly string[]): BenchOptions {
  const flags = flagsOf(args)
  const known = BENCHES.map(({ name }) => name)
  const standing = BENCHES.filter(({ onRequest }) => onRequest !== true)
  const only = flags.get('--only') ?? standing.map(({ name }) => name)
  const unknown = only.find((name) => !known.includes(name))
  if (unknown !== undefined) throw new UsageError(`there is no bench '${unknown}'`)
  const models = flags.get('--model') ?? []
  const stranger = models.find((name) => !WORKLOAD_MODELS.includes(name))
  if (stranger !== undefined) throw new UsageError(`there is no model '${stranger}'`)
  return {
    args,
    json: flags.has('--json'),
    help: flags.has('--help'),
    only,
    devices: oneWord(flags, '--devices') ?? 'host',
    models,
    python: oneWord(flags, '--python') ?? process.env.CKPT_PYTHON ?? 'python3',
    wheels: oneWord(flags, '--wheels'),
    trace: oneWord(flags, '--trace') ?? DEFAULT_TRACE,
    sizes: chosenSizes(flags),
  }
}

function oneWord(flags: ReadonlyMap<string, readonly string[]>, flag: string): string | null {
  const words = flags.get(flag) ?? []
  if (words.length > 1) throw new UsageError(`${flag} takes one word`)
  return words[0] ?? null
}

const TAKES_WORDS: Readonly<Record<string, boolean>> = {
  '--json': false,
  '--help': false,
  '--only': true,
  '--devices': true,
  '--mib': true,
  '--sizes': true,
  '--model': true,
  '--python': true,
  '--wheels': true,
  '--trace': true,
}

function flagsOf(args: readonly string[]): Map<string, string[]> {
  const flags = new Map<string, string[]>()
  let words: string[] | null = null
  for (const arg of args) {
    if (arg.startsWith('-')) {
      if (!Object.hasOwn(TAKES_WORDS, arg)) throw new UsageError(`unknown option '${arg}'`)
      words = flags.get(arg) ?? []
      flags.set(arg, words)
      if (!TAKES_WORDS[arg]) words = null
    } else if (words === null) {
      throw new UsageError(`'${arg}' belongs to no option`)
    } else {
      words.push(arg)
    }
  }
  for (const [flag, given] of flags) {
    if (TAKES_WORDS[flag] && given.length === 0) throw new UsageError(`${flag} takes a word`)
  }
  return flags
}

function sizeOf(word: string): number {
  const mib = Number(word)
  if (Number.isSafeInteger(mib) && mib >= 1 && mib <= MIB_MAX) return mib * MIB
  throw new UsageError(`--mib ${word}: a whole number from 1 to ${MIB_MAX} is wanted`)
}

function chosenSizes(flags: ReadonlyMap<string, readonly string[]>): number[] {
  const words = flags.get('--sizes')
  if (words === undefined) return (flags.get('--mib') ?? DEFAULT_MIB).map(sizeOf)
  if (flags.has('--mib')) throw new UsageError('--mib and --sizes exclude each other')
  return words.flatMap(sweepOf)
}

/** `64K`, or `64K..1G`: each power of two from one to the other, as nccl-tests' `-b 64K -e 1G -f 2`. */
function sweepOf(word: string): number[] {
  const ends = word.split('..')
  const [first = 0, last = first] = ends.map((end) => powerOf2(end, word))
  if (ends.length > 2 || first > last) {
    throw new UsageError(
      `--sizes ${word}: a range is wanted such as 64K..1G, the smaller size first`,
    )
  }
  const sizes: number[] = []
  for (let bytes = first; bytes <= last; bytes *= 2) sizes.push(bytes)
  return sizes
}

function powerOf2(text: string, word: string): number {
  const [, count, unit = ''] = /^(\d+)([KMG])$/.exec(text) ?? []
  const bytes = Number(count) * (UNIT_BYTES[unit] ?? Number.NaN)
  const inRange = bytes >= COPY_BYTES_LEAST && bytes <= MIB_MAX * MIB
  if (inRange && Number.isInteger(Math.log2(bytes))) return bytes
  throw new UsageError(`--sizes ${word}: powers of two are wanted, from 4K to 64G`)
}
