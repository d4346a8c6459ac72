import { describe, expect, test } from 'bun:test'
import type { UpdateRequest } from '@ckpt/core'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import type { RunningEngine } from '../../engines/reference/index.ts'
import { u8 } from '../registry/testing/fixture.ts'
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

describe.skipIf(withoutUcx !== null)('a daemon that is lost', () => {
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

  test('takes its part of a checkpoint with it, which is missed by name until it is held again', async () => {
    await withDaemons(
      [1, 1],
      async (all) => {
        const [leader, follower] = all.daemons as [TestDaemon, TestDaemon]
        const engines = [await all.engine(), await all.engine()] as const
        const theirs = { 'theirs.weight': u8(500, 3), 'theirs.bias': u8(20, 4) }
        await leader.register(TENSORS)
        await follower.register(theirs)
        await leader.updates.start(NAME, requestOf(engines)).done
        all.cut(1)
        const survivors = { ...requestOf(engines), require: 'survivors' } as const
        const missing = async (request: UpdateRequest) => {
          const { failure } = await outcomeOf(leader.updates.start(NAME, request).done)
          expect(failure).toMatchObject({ code: 'tensor_missing', phase: 'gather' })
          expect(failure?.message).toMatch(/only node 1, .* held theirs.bias and 1 others of model/)
        }
        await missing(survivors)
        // it comes without its memory
        await follower.registry.drop(NAME, { force: true })
        all.join(1)
        await missing(requestOf(engines))
        await follower.register(theirs)
        await leader.updates.start(NAME, requestOf(engines)).done
        for (const engine of engines) await requireWeights(engine, { ...TENSORS, ...theirs })
        // whoever drops it there does so knowingly
        await follower.registry.drop(NAME, { force: false })
        await leader.updates.start(NAME, requestOf(engines)).done
      },
      SMALL_BUCKETS,
    )
  }, 60_000)

  test('leaves its engines out of an update of the survivors, which names them', async () => {
    await withDaemons(
      [1, 1],
      async (all) => {
        const [leader] = all.daemons as [TestDaemon]
        const engines = [await all.engine(), await all.engine()] as const
        await leader.register(TENSORS)
        all.cut(1)
        const request = { ...requestOf(engines), require: 'survivors' } as const
        const { engines: told } = await leader.updates.start(NAME, request).done
        expect(told).toMatchObject([
          { url: engines[0].url, result: 'ok' },
          { url: engines[1].url, result: 'not_contacted', torn: false, error: { rank: 1 } },
        ])
        await requireWeights(engines[0], TENSORS)
        const none = { ...request, engines: request.engines?.slice(1) }
        expect(() => leader.updates.start(NAME, none)).toThrow('node 1 is lost')
      },
      SMALL_BUCKETS,
    )
  }, 60_000)

  test('whose memory others read ends the update, though none of its ranks is in it', async () => {
    await withDaemons(
      [1, 1],
      async (all) => {
        const [leader, owner] = all.daemons as [TestDaemon, TestDaemon]
        await owner.register(TENSORS)
        const hanging = await all.engine({ faults: ['hang@2:once'] })
        const { id, done } = leader.updates.start(NAME, { ...requestOf([hanging]), ranks: [0] })
        const outcome = outcomeOf(done)
        await until(() => leader.updates.state(id).buckets_done === 2)
        all.cut(1)
        const { failure } = await outcome
        expect(failure).toMatchObject({ code: 'node_lost', rank: 1, phase: 'transfer' })
      },
      SMALL_BUCKETS,
    )
  }, 60_000)
})
