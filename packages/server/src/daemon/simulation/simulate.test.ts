import { describe, expect, test } from 'bun:test'
import { describeSeed, SeedCounts } from './counts.ts'
import { simulateSeed } from './simulate.ts'

/** So long for each of the two ranges of seeds. */
const SECONDS = 10
const SEEDS_MOST = 2000
/** Also where that takes longer. */
const SEEDS_LEAST = 300
const RANDOM_MOST = 2 ** 31

/** As many seeds as there is time for. */
async function simulate(from: number): Promise<SeedCounts> {
  const counts = new SeedCounts()
  const endMs = performance.now() + SECONDS * 1000
  for (let seed = from; seed < from + SEEDS_MOST; seed++) {
    if (performance.now() >= endMs && seed >= from + SEEDS_LEAST) break
    counts.add(simulateSeed(seed))
    // some of what a simulation leaves goes with a turn of the event loop only
    if (seed % 50 === 0) await Bun.sleep(0)
  }
  return counts
}

function requireGood(counts: SeedCounts): void {
  expect(counts.failing.map(describeSeed).join('\n')).toBe('')
}

describe('simulated updates', () => {
  test('nothing happens that must not, whatever is disturbed', async () => {
    const counts = await simulate(1)
    requireGood(counts)
    // it means something only where many things do happen
    const seen = ['done', 'aborted', 'engine_failed', 'node_lost', 'rank_failed', 'update_timeout']
    for (const outcome of seen) expect([outcome, counts.of(outcome)]).not.toEqual([outcome, 0])
    const { done, failed, torn } = counts.direct
    expect(Math.min(done, failed, torn)).toBeGreaterThan(0)
  }, 120_000)

  test('from a seed that differs each time', async () => {
    const from = Math.floor(Math.random() * RANDOM_MOST)
    console.log(`simulated updates from seed ${from}`)
    requireGood(await simulate(from))
  }, 120_000)

  test('seeds that have found something', () => {
    const seeds = [
      // the daemon of a rank that is alone dies when it has sent its first list and not yet said that it has opened
      1186930061,
      // the network brings nothing any more, and the update ends before that daemon is given up
      46685,
    ]
    for (const seed of seeds) expect(simulateSeed(seed, { ringOnly: true }).violation).toBeNull()
    // engines stayed paused: that of several daemons, which two of them had stopped; one whose update was aborted while the pause was
    // journalled; those that a leader had paused which died, and that were its follower's to stop
    for (const seed of [102, 225, 121, 644]) expect(simulateSeed(seed).violation).toBeNull()
  })

  test('a seed repeats exactly', () => {
    for (const seed of [3, 14, 15, 92, 653, 956]) {
      const lines = () => {
        const traced: string[] = []
        simulateSeed(seed, { trace: (line) => traced.push(line.replace(RANDOM_NAME, '')) })
        return traced
      }
      const first = lines()
      expect(first.length).toBeGreaterThan(20)
      expect(lines()).toEqual(first)
    }
  })
})

/** Sockets of other daemons are named by chance, which decides nothing. */
const RANDOM_NAME = /-[0-9a-f]{16}\.sock/
