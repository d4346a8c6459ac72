import { describe, expect, test } from 'bun:test'
import type { UpdateRequest } from '@ckpt/core'
import type { RunningEngine } from '../../engines/reference/index.ts'
import {
  outcomeOf,
  requireWeights,
  SMALL_BUCKETS,
  tensorsOf,
  until,
  weightsOf,
} from '../updates/testing/fixture.ts'
import { type Daemons, NAME, type TestDaemon, withDaemons } from './testing/daemons.ts'

const TENSORS = tensorsOf(12, 60_000, 1)

/** The engines of a leader with one rank and of a follower with one. */
function requestOf(engines: readonly RunningEngine[]): UpdateRequest {
  return {
    timeout: 20,
    open_timeout: 10,
    engines: engines.map(({ url }, rank) => ({ url, ranks: [rank] })),
  }
}

/** An update of which the follower's engine has a part when it stands still. */
async function stuck({ daemons, engine }: Daemons) {
  const [leader, follower] = daemons as [TestDaemon, TestDaemon]
  await leader.register(TENSORS)
  const whole = await engine()
  const hanging = await engine({ faults: ['hang@2:once'] })
  const { id, done } = leader.updates.start(NAME, requestOf([whole, hanging]))
  const outcome = outcomeOf(done)
  await until(() => leader.updates.state(id).buckets_done === 2)
  return { leader, follower, whole, hanging, outcome }
}

describe('a daemon that is lost', () => {
  test('in the middle of an update ends it everywhere, and the next one works', async () => {
    await withDaemons(
      [1, 1],
      async (all) => {
        const { leader, follower, whole, outcome } = await stuck(all)
        all.cut(1)
        const { failure, seconds } = await outcome
        expect(failure).toMatchObject({ code: 'node_lost', rank: 1, phase: 'transfer' })
        expect(seconds).toBeLessThan(5)
        expect((await weightsOf(whole)).torn).toBe(true)
        await until(() => !follower.updates.node?.busy)
        // without it: refused, or with those that are there
        const alone = requestOf([whole])
        expect(() => leader.updates.start(NAME, alone)).toThrow('node 1 is lost')
        await leader.updates.start(NAME, { ...alone, require: 'survivors' }).done
        await requireWeights(whole, TENSORS)
        all.join(1)
        const fresh = await all.engine()
        const report = await leader.updates.start(NAME, requestOf([whole, fresh])).done
        expect(report.ranks).toBe(2)
        await requireWeights(fresh, TENSORS)
      },
      SMALL_BUCKETS,
    )
  }, 60_000)
})
