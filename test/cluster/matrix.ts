/**
 * The failure matrix of several daemons: who is lost, how, and when. Prints a line a case.
 *
 *     bun test/cluster/matrix.ts [--only WORDS]
 */
import { parseArgs } from 'node:util'
import { type MatrixCase, nameOf, runCase } from './case.ts'
import { TestCluster } from './cluster.ts'
import { FACTS, PLACES } from './places.ts'

const DAEMONS = (['kill', 'stop'] as const).flatMap((how) =>
  PLACES.flatMap((when): MatrixCase[] => [
    { who: 'leader', how, when },
    { who: 'follower', how, when },
    { who: 'engine', how, when },
  ]),
)
const RANKS = (['throw', 'die', 'hang'] as const).flatMap((how) =>
  PLACES.filter((when) => FACTS[when].step !== null).map(
    (when): MatrixCase => ({ who: 'rank', how, when }),
  ),
)
export const MATRIX: readonly MatrixCase[] = [...DAEMONS, ...RANKS]

/** Runs them one after another; a cluster in which one went wrong is replaced. Returns how many went wrong. */
export async function runMatrix(
  cases: readonly MatrixCase[],
  print: (line: string) => void,
): Promise<number> {
  let cluster: TestCluster | null = null
  let wrong = 0
  const began = performance.now()
  for (const one of cases) {
    const beganMs = performance.now()
    let fault: string | null = null
    try {
      cluster ??= await TestCluster.start()
      await runCase(cluster, one)
    } catch (error) {
      fault = (error as Error).message
      wrong++
      if (process.env.CKPT_MATRIX_VERBOSE !== undefined) print(outputOf(cluster))
      if (process.env.CKPT_MATRIX_STOP !== undefined) await Bun.sleep(1e8)
      await cluster?.end()
      cluster = null
    }
    const seconds = ((performance.now() - beganMs) / 1000).toFixed(1)
    print(`${nameOf(one).padEnd(24)} ${seconds.padStart(6)} s  ${fault === null ? 'ok' : fault}`)
  }
  const left = (await cluster?.end()) ?? []
  for (const line of left) print(line)
  const seconds = ((performance.now() - began) / 1000).toFixed(0)
  print(`${cases.length} cases, ${wrong + left.length} wrong, ${seconds} s`)
  return wrong + left.length
}

function outputOf(cluster: TestCluster | null): string {
  const all = [...(cluster?.daemons ?? []), ...(cluster?.engines ?? [])]
  return all.map(({ child }) => `--- ${child.name}\n${child.output}`).join('\n')
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { only: { type: 'string', default: '' } } })
  const words = values.only.split(' ').filter((word) => word !== '')
  const cases = MATRIX.filter((one) => words.every((word) => nameOf(one).split(' ').includes(word)))
  const wrong = await runMatrix(cases, (line) => process.stdout.write(`${line}\n`))
  process.exitCode = wrong === 0 ? 0 : 1
}
