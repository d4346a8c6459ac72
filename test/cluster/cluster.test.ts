/** The cases of the failure matrix that show most of it; `npm run test:faults` runs all. */
import { afterAll, describe, expect, test } from 'bun:test'
import { type MatrixCase, nameOf, runCase } from './case.ts'
import { withoutUcx } from '../support/ucx.ts'
import { TestCluster } from './cluster.ts'

const TIMEOUT_MS = 60_000

const CASES: readonly MatrixCase[] = [
  { who: 'follower', how: 'kill', when: 'gather' },
  { who: 'follower', how: 'kill', when: 'middle' },
  { who: 'leader', how: 'kill', when: 'first' },
  { who: 'leader', how: 'kill', when: 'release' },
  { who: 'engine', how: 'kill', when: 'middle' },
  { who: 'rank', how: 'throw', when: 'meet' },
  { who: 'follower', how: 'stop', when: 'last' },
]

describe.skipIf(withoutUcx !== null)(
  'three daemons with an engine each, of which one is lost',
  () => {
    let cluster: TestCluster | null = null

    afterAll(async () => {
      expect((await cluster?.end()) ?? []).toEqual([])
    })

    for (const one of CASES) {
      test(
        nameOf(one),
        async () => {
          cluster ??= await TestCluster.start()
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
