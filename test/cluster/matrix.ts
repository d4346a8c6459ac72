/**
 * The failure matrix of several daemons: who is lost, how, and when, in updates through the ring and direct ones. Prints a line a case.
 *
 *     bun test/cluster/matrix.ts [--only WORDS]
 */
import { parseArgs } from 'node:util'
import { type MatrixCase, nameOf, runCase } from './case.ts'
import { LOOPBACK, type Network, TestCluster } from './cluster.ts'
import { KINDS, type Way } from './kinds.ts'
import { namespaces } from './namespaces.ts'
import { factsOf, placesOf } from './places.ts'

const NOTHING: MatrixResult = { cases: 0, wrong: 0 }
/** Of two daemons the one that is asked for the update cannot be the one that keeps it standing where the leader gathers. */
const isPossible = ({ way, who, when }: MatrixCase) =>
  way === 'ring' || who !== 'leader' || when !== 'gather'
const WAYS = ['ring', 'direct'] as const

function daemons(way: Way): MatrixCase[] {
  return (['kill', 'stop'] as const).flatMap((how) =>
    placesOf(way).flatMap((when): MatrixCase[] => [
      { way, who: 'leader', how, when },
      { way, who: 'follower', how, when },
      { way, who: 'engine', how, when },
    ]),
  )
}

function ranks(way: Way): MatrixCase[] {
  return (['throw', 'hang'] as const).flatMap((how) =>
    placesOf(way)
      .filter((when) => factsOf(way, when).step !== undefined)
      .map((when): MatrixCase => ({ way, who: 'rank', how, when })),
  )
}

function cuts(way: Way): MatrixCase[] {
  return placesOf(way).flatMap((when): MatrixCase[] => [
    { way, who: 'leader', how: 'cut', when },
    { way, who: 'follower', how: 'cut', when },
  ])
}

/** On one host, and with a host for every daemon. */
export const MATRIX = WAYS.flatMap((way) => [...daemons(way), ...ranks(way)]).filter(isPossible)
export const NETWORK_MATRIX = WAYS.flatMap(cuts).filter(isPossible)

export interface MatrixResult {
  readonly cases: number
  readonly wrong: number
}

/** Runs them one after another; a cluster is replaced where another kind is needed, or one went wrong in it. */
export async function runMatrix(
  cases: readonly MatrixCase[],
  network: (way: Way) => Promise<Network>,
  print: (line: string) => void,
): Promise<MatrixResult> {
  let cluster: TestCluster | null = null
  let wrong = 0
  const end = async () => {
    const left = (await cluster?.end()) ?? []
    cluster = null
    for (const line of left) print(line)
    return left.length
  }
  for (const one of cases) {
    const beganMs = performance.now()
    let fault: string | null = null
    try {
      if (cluster !== null && cluster.kind.way !== one.way) wrong += await end()
      cluster ??= await TestCluster.start(one.way, await network(one.way))
      await runCase(cluster, one)
    } catch (error) {
      fault = (error as Error).message
      wrong++
      if (process.env.CKPT_MATRIX_VERBOSE !== undefined) print(outputOf(cluster))
      await cluster?.end()
      cluster = null
    }
    const seconds = ((performance.now() - beganMs) / 1000).toFixed(1)
    print(`${nameOf(one).padEnd(28)} ${seconds.padStart(6)} s  ${fault === null ? 'ok' : fault}`)
  }
  wrong += await end()
  return { cases: cases.length, wrong }
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
  const first = await namespaces(1)
  if (typeof first === 'string') {
    print(`${cases.length} cases skipped: ${first}`)
    return NOTHING
  }
  await first.close()
  const network = async (way: Way) => {
    const given = await namespaces(KINDS[way].nodes)
    if (typeof given === 'string') throw new Error(given)
    return given
  }
  return runMatrix(cases, network, print)
}

if (import.meta.main) process.exitCode = await main()
