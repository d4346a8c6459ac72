/**
 * All tests of faults: simulated clusters, the failure matrix, and hosts in network namespaces.
 *
 *   npm run test:faults                   all of them, one after another
 *   npm run test:faults -- --only WORDS   cases of the matrix alone (test/cluster/matrix.ts)
 *
 * Exits with 1 when one of them has failed, after all have run.
 */
import { join } from 'node:path'

const ROOT = join(import.meta.dir, '..')
const MATRIX = ['test/cluster/matrix.ts']
const ALL = [
  ['scripts/simulate.ts', '--seeds', '10000'],
  MATRIX,
  // one after another: each wants the machine for itself
  ['test', './test/cluster/network.test.ts'],
  ['test', './test/cluster/direct-network.test.ts'],
]

async function runs(command: readonly string[]): Promise<boolean> {
  process.stdout.write(`\n${command.join(' ')}\n`)
  const child = Bun.spawn([process.execPath, ...command], {
    cwd: ROOT,
    stdio: ['inherit', 'inherit', 'inherit'],
  })
  return (await child.exited) === 0
}

const args = process.argv.slice(2)
const failed: string[] = []
for (const command of args.length > 0 ? [[...MATRIX, ...args]] : ALL) {
  if (!(await runs(command))) failed.push(command.join(' '))
}
process.stdout.write(failed.length === 0 ? '\nall passed\n' : `\nFAILED: ${failed.join('; ')}\n`)
process.exitCode = failed.length === 0 ? 0 : 1
