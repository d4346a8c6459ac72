/**
 * The failure matrix of several daemons: who is lost, how, and when. Prints a line a case.
 *
 *     bun test/cluster/matrix.ts [--only WORDS]
 */
import { parseArgs } from 'node:util'
import { type MatrixCase, nameOf, runCase } from './case.ts'
import { LOOPBACK, type Network, TestCluster } from './cluster.ts'
import { namespaces } from './namespaces.ts'
import { FACTS, PLACES } from './places.ts'

const NOTHING: MatrixResult = { cases: 0, wrong: 0 }
const DAEMONS = (['kill', 'stop'] as const).flatMap((how) =>
  PLACES.flatMap((when): MatrixCase[] => [
    { who: 'leader', how, when },
    { who: 'follower', how, when },
    { who: 'engine', how, when },
  ]),
)
const RANKS = (['throw', 'hang'] as const).flatMap((how) =>
  PLACES.filter((when) => FACTS[when].step !== null).map(
    (when): MatrixCase => ({ who: 'rank', how, when }),
  ),
)
const CUTS = PLACES.flatMap((when): MatrixCase[] => [
  { who: 'leader', how: 'cut', when },
  { who: 'follower', how: 'cut', when },
])
/** On one host, and with a host for every daemon. */
export const MATRIX: readonly MatrixCase[] = [...DAEMONS, ...RANKS]
export const NETWORK_MATRIX: readonly MatrixCase[] = CUTS

export interface MatrixResult {
  readonly cases: number
  readonly wrong: number
}

/** Runs them one after another; a cluster in which one went wrong is replaced. */
export async function runMatrix(
  cases: readonly MatrixCase[],
  network: () => Promise<Network>,
  print: (line: string) => void,
): Promise<MatrixResult> {
  let cluster: TestCluster | null = null
  let wrong = 0
  for (const one of cases) {
    const beganMs = performance.now()
    let fault: string | null = null
    try {
      cluster ??= await TestCluster.start(await network())
      await runCase(cluster, one)
    } catch (error) {
      fault = (error as Error).message
      wrong++
      if (process.env.CKPT_MATRIX_VERBOSE !== undefined) print(outputOf(cluster))
      await cluster?.end()
      cluster = null
    }
    const seconds = ((performance.now() - beganMs) / 1000).toFixed(1)
    print(`${nameOf(one).padEnd(24)} ${seconds.padStart(6)} s  ${fault === null ? 'ok' : fault}`)
  }
  const left = (await cluster?.end()) ?? []
  for (const line of left) print(line)
  return { cases: cases.length, wrong: wrong + left.length }
}

function outputOf(cluster: TestCluster | null): string {
  const all = [...(cluster?.daemons ?? []), ...(cluster?.engines ?? [])]
  return all.map(({ child }) => `--- ${child.name}\n${child.output}`).join('\n')
}

async function main(): Promise<number> {
  const { values } = parseArgs({ options: { only: { type: 'string', default: '' } } })
  const words = values.only.split(' ').filter((word) => word !== '')
  const asked = (one: MatrixCase) => words.every((word) => nameOf(one).split(' ').includes(word))
  const print = (line: string) => process.stdout.write(`${line}\n`)
  const began = performance.now()
  const here = await runMatrix(MATRIX.filter(asked), async () => LOOPBACK, print)
  const cuts = NETWORK_MATRIX.filter(asked)
  const apart = cuts.length === 0 ? NOTHING : await runCuts(cuts, print)
  const seconds = Math.round((performance.now() - began) / 1000)
  const wrong = here.wrong + apart.wrong
  print(`${here.cases + apart.cases} cases, ${wrong} wrong, ${seconds} s`)
  return wrong === 0 ? 0 : 1
}

async function runCuts(
  cases: readonly MatrixCase[],
  print: (line: string) => void,
): Promise<MatrixResult> {
  const first = await namespaces()
  if (typeof first === 'string') {
    print(`${cases.length} cases skipped: ${first}`)
    return NOTHING
  }
  let next: Network | null = first
  const network = async () => {
    const given = next ?? (await namespaces())
    next = null
    if (typeof given === 'string') throw new Error(given)
    return given
  }
  return runMatrix(cases, network, print)
}

if (import.meta.main) process.exitCode = await main()
