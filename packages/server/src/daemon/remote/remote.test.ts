import { describe, expect, test } from 'bun:test'
import { outcomeOf, requireWeights, SMALL_BUCKETS, tensorsOf } from '../updates/testing/fixture.ts'
import { NAME, withDaemons } from './testing/daemons.ts'

const REQUEST = { timeout: 20, open_timeout: 10 }

describe('an update of several daemons', () => {
  test('every engine gets what any of the daemons holds', async () => {
    await withDaemons(
      [2, 1],
      async ({ daemons, engine }) => {
        const [leader, follower] = daemons as [(typeof daemons)[0], (typeof daemons)[0]]
        const first = await engine({ tensorParallelSize: 2 })
        const second = await engine()
        const mine = tensorsOf(12, 60_000, 1)
        const theirs = Object.fromEntries(
          Object.entries(tensorsOf(12, 40_000, 2)).map(([name, one]) => [`b.${name}`, one]),
        )
        await leader.register(mine)
        await follower.register(theirs)
        const engines = [
          { url: first.url, ranks: [0, 1] },
          { url: second.url, ranks: [2] },
        ]
        for (const _ of [1, 2, 3]) {
          const { done } = leader.updates.start(NAME, { ...REQUEST, engines, mode: 'pipelined' })
          const report = await done
          expect(report).toMatchObject({ mode: 'pipelined', tensors: 24 })
          await requireWeights(first, { ...mine, ...theirs })
          await requireWeights(second, { ...mine, ...theirs })
        }
      },
      SMALL_BUCKETS,
    )
  }, 60_000)

  test('the leader may hold nothing, and a daemon neither', async () => {
    await withDaemons([1, 1, 2], async ({ daemons, engine }) => {
      const [leader, follower] = daemons as [(typeof daemons)[0], (typeof daemons)[0]]
      const one = await engine()
      const tensors = tensorsOf(6, 50_000, 3)
      await follower.register(tensors)
      const engines = [{ url: one.url, ranks: [3] }]
      const report = await leader.updates.start(NAME, { ...REQUEST, engines }).done
      expect(report.ranks).toBe(4)
      await requireWeights(one, tensors)
    })
  }, 60_000)

  test('nothing is held anywhere', async () => {
    await withDaemons([1, 1], async ({ daemons }) => {
      const { failure } = await outcomeOf(
        (daemons[0] as (typeof daemons)[0]).updates.start(NAME, REQUEST).done,
      )
      expect(failure).toMatchObject({ code: 'checkpoint_not_found', phase: 'gather' })
    })
  }, 60_000)
})
