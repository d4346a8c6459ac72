/**
 * Simulated updates: random clusters, engines, delays and faults over the daemon's own code.
 *
 *   npm run simulate -- [--seeds N] [--from S]   N seeds (10,000) from S on (1)
 *   npm run simulate -- --seed S [--trace]       one of them again, with everything that happens in it
 *
 * Exits with 1 when something has happened that must not.
 */
import { parseArgs } from 'node:util'
import { describeSeed, SeedCounts } from '../packages/server/src/daemon/simulation/counts.ts'
import { simulateSeed } from '../packages/server/src/daemon/simulation/simulate.ts'

const SEEDS = 10_000
/** Seeds after which the event loop has a turn: some of what a simulation leaves goes only then. */
const TURN = 50
/** More would say nothing new. */
const FAILING_MAX = 20

const { values } = parseArgs({
  args: Bun.argv.slice(2),
  options: {
    seeds: { type: 'string', default: `${SEEDS}` },
    from: { type: 'string', default: '1' },
    seed: { type: 'string' },
    trace: { type: 'boolean', default: false },
  },
})

function numberOf(name: string, text: string): number {
  const value = Number(text)
  if (Number.isSafeInteger(value) && value >= 0) return value
  process.stderr.write(`simulate: --${name} ${text} is not a whole number\n`)
  process.exit(2)
}

function simulateOne(seed: number): boolean {
  const trace = values.trace ? { trace: (line: string) => console.log(line) } : {}
  const result = simulateSeed(seed, trace)
  console.log(`seed ${seed}: ${result.outcome}, ${result.updates} updates`)
  if (result.violation !== null) console.log(describeSeed(result))
  return result.violation === null
}

async function simulateMany(from: number, seeds: number): Promise<boolean> {
  const startMs = performance.now()
  const counts = new SeedCounts()
  for (let seed = from; seed < from + seeds; seed++) {
    const result = simulateSeed(seed)
    counts.add(result)
    if (result.violation !== null) console.log(describeSeed(result))
    if (counts.failing.length === FAILING_MAX) break
    if (seed % TURN === 0) await Bun.sleep(0)
  }
  const seconds = (performance.now() - startMs) / 1000
  for (const [outcome, count] of counts.outcomes) {
    console.log(`${outcome.padEnd(24)}${String(count).padStart(7)}`)
  }
  const { failing, updates, direct } = counts
  console.log(`direct updates: ${direct.done} done, ${direct.failed} failed, ${direct.torn} torn`)
  const verdict = failing.length === 0 ? 'nothing that must not happen' : `${failing.length} FAILED`
  console.log(
    `${counts.seeds} seeds from ${from}, ${updates} updates in ${seconds.toFixed(1)} s: ${verdict}`,
  )
  return failing.length === 0
}

const { seed } = values
const good =
  seed === undefined
    ? await simulateMany(numberOf('from', values.from), numberOf('seeds', values.seeds))
    : simulateOne(numberOf('seed', seed))
process.exitCode = good ? 0 : 1
