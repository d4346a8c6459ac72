/** The cases of the failure matrix that show most of it; `npm run test:faults` runs all. */
import { afterAll, describe, expect, test } from 'bun:test'
import { type MatrixCase, nameOf, runCase } from './case.ts'
import { withoutUcx } from '../support/ucx.ts'
import { type Network, TestCluster } from './cluster.ts'
import { KINDS } from './kinds.ts'
import { namespaces } from './namespaces.ts'

const TIMEOUT_MS = 60_000

const CASES: readonly MatrixCase[] = [
  { way: 'ring', who: 'follower', how: 'kill', when: 'gather' },
  { way: 'ring', who: 'follower', how: 'kill', when: 'middle' },
  { way: 'ring', who: 'leader', how: 'kill', when: 'first' },
  { way: 'ring', who: 'leader', how: 'kill', when: 'release' },
  { way: 'ring', who: 'engine', how: 'kill', when: 'middle' },
  { way: 'ring', who: 'rank', how: 'throw', when: 'meet' },
  { way: 'ring', who: 'follower', how: 'stop', when: 'last' },
  { way: 'ring', who: 'leader', how: 'stop', when: 'middle' },
  { way: 'ring', who: 'engine', how: 'stop', when: 'first' },
  { way: 'ring', who: 'rank', how: 'hang', when: 'middle' },
  { way: 'direct', who: 'follower', how: 'kill', when: 'middle' },
  { way: 'direct', who: 'leader', how: 'kill', when: 'begun' },
  { way: 'direct', who: 'engine', how: 'kill', when: 'first' },
  { way: 'direct', who: 'follower', how: 'stop', when: 'first' },
  { way: 'direct', who: 'rank', how: 'throw', when: 'last' },
  { way: 'direct', who: 'rank', how: 'hang', when: 'middle' },
]

const CUT: MatrixCase = { way: 'ring', who: 'follower', how: 'cut', when: 'middle' }
const hosts = withoutUcx ?? (await namespaces(KINDS.ring.nodes))
if (typeof hosts === 'string') console.log(`skipped, a link that is cut: ${hosts}`)

test.skipIf(typeof hosts === 'string')(
  nameOf(CUT),
  async () => {
    const cluster = await TestCluster.start('ring', hosts as Network)
    try {
      await runCase(cluster, CUT)
    } finally {
      expect(await cluster.end()).toEqual([])
    }
  },
  TIMEOUT_MS,
)

describe.skipIf(withoutUcx !== null).each(['ring', 'direct'] as const)(
  'daemons with an engine each, of which one is lost: %s',
  (way) => {
    let cluster: TestCluster | null = null

    afterAll(async () => {
      expect((await cluster?.end()) ?? []).toEqual([])
    })

    for (const one of CASES.filter((each) => each.way === way)) {
      test(
        nameOf(one),
        async () => {
          cluster ??= await TestCluster.start(way)
          try {
            await runCase(cluster, one)
          } catch (error) {
            // what it has left is nothing for the next one
            await cluster.end()
            cluster = null
            throw error
          }
        },
        TIMEOUT_MS,
      )
    }
  },
)
