import { describe, expect, test } from 'bun:test'
import { appendFileSync } from 'node:fs'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import { type TestTensors, u8 } from '../registry/testing/fixture.ts'
import type { RankLink } from '../rank/link.ts'
import { outcomeOf, requireWeights, SMALL_BUCKETS, tensorsOf } from '../updates/testing/fixture.ts'
import { type Daemons, NAME, type TestDaemon, withDaemons } from './testing/daemons.ts'

const REQUEST = { timeout: 20, open_timeout: 10 }

/** Names that come between those of another daemon. */
function renamed(tensors: TestTensors): TestTensors {
  return Object.fromEntries(Object.entries(tensors).map(([name, one]) => [`${name}.b`, one]))
}

describe.skipIf(withoutUcx !== null)('an update of several daemons', () => {
  test('every engine gets what any of the daemons holds', async () => {
    await withDaemons(
      [2, 2],
      async ({ daemons, engine }) => {
        const [leader, follower] = daemons as [TestDaemon, TestDaemon]
        const first = await engine({ tensorParallelSize: 2 })
        const second = await engine({ tensorParallelSize: 2 })
        const mine = tensorsOf(12, 60_000, 1)
        const theirs = renamed(tensorsOf(12, 40_000, 2))
        await leader.register(mine)
        await follower.register(theirs)
        const engines = [
          { url: first.url, ranks: [0, 1] },
          { url: second.url, ranks: [2, 3] },
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
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      const one = await engine()
      const tensors = tensorsOf(6, 50_000, 3)
      await follower.register(tensors)
      const engines = [{ url: one.url, ranks: [2] }]
      const report = await leader.updates.start(NAME, { ...REQUEST, engines }).done
      expect(report.ranks).toBe(4)
      await requireWeights(one, tensors)
    })
  }, 60_000)

  test('nothing is held anywhere', async () => {
    await withDaemons([1, 1], async ({ daemons }) => {
      const { failure } = await outcomeOf(
        (daemons[0] as TestDaemon).updates.start(NAME, REQUEST).done,
      )
      expect(failure).toMatchObject({ code: 'checkpoint_not_found', phase: 'gather' })
    })
  }, 60_000)

  test('straight into the engines where they say that they may be written', async () => {
    await withDaemons([1, 1], async ({ daemons, engine }) => {
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      const [first, second] = [await engine({ direct: true }), await engine({ direct: true })]
      const mine = tensorsOf(5, 70_000, 4)
      const theirs = renamed(tensorsOf(5, 30_000, 5))
      await leader.register(mine)
      await follower.register(theirs)
      const engines = [
        { url: first.url, ranks: [0] },
        { url: second.url, ranks: [1] },
      ]
      const modes: string[] = []
      for (const _ of [1, 2]) {
        const report = await leader.updates.start(NAME, { ...REQUEST, engines }).done
        modes.push(report.mode)
        await requireWeights(first, { ...mine, ...theirs })
        await requireWeights(second, { ...mine, ...theirs })
      }
      expect(modes).toEqual(['pipelined', 'direct'])
    })
  }, 60_000)

  test('while files are still being read, at either daemon', async () => {
    await withDaemons([1, 1], async ({ daemons, engine }) => {
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      const [first, second] = [await engine(), await engine()]
      const mine = tensorsOf(5, 300_000, 6)
      const theirs = renamed(tensorsOf(5, 200_000, 7))
      await leader.register(mine, { wait: false })
      await follower.register(theirs, { wait: false })
      const engines = [
        { url: first.url, ranks: [0] },
        { url: second.url, ranks: [1] },
      ]
      await leader.updates.start(NAME, { ...REQUEST, engines }).done
      await requireWeights(first, { ...mine, ...theirs })
      await requireWeights(second, { ...mine, ...theirs })
    })
  }, 60_000)

  test('files in place are checked where they are', async () => {
    await withDaemons([1, 1], async ({ daemons, engine }) => {
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      const request = { ...REQUEST, engines: [{ url: (await engine()).url, ranks: [0] }] }
      await leader.register(tensorsOf(2, 3000, 8))
      await follower.register(renamed(tensorsOf(2, 3000, 9)), { in_place: true })
      await leader.updates.start(NAME, request).done
      appendFileSync(`${follower.dir.path}/model.safetensors`, 'x')
      const { failure } = await outcomeOf(leader.updates.start(NAME, request).done)
      expect(failure?.code).toMatch(/^(file_changed|checkpoint_invalid)$/)
      expect(failure?.message).toContain('model.safetensors')
    })
  }, 60_000)

  test('metas are gathered while an update runs, which does not notice', async () => {
    await withDaemons(
      [1, 1],
      async ({ daemons, engine }) => {
        const [leader, follower] = daemons as [TestDaemon, TestDaemon]
        const [first, second] = [await engine(), await engine()]
        const tensors = tensorsOf(12, 60_000, 21)
        await follower.register(tensors)
        const engines = [
          { url: first.url, ranks: [0] },
          { url: second.url, ranks: [1] },
        ]
        const { done } = leader.updates.start(NAME, { ...REQUEST, engines })
        let running = true
        const ended = outcomeOf(done).finally(() => (running = false))
        const gathered = new Set<string>()
        while (running) gathered.add((await leader.updates.leader!.versions.gather(NAME)).digest)
        expect((await ended).failure).toBeNull()
        expect(gathered.size).toBe(1)
        await requireWeights(second, tensors)
      },
      SMALL_BUCKETS,
    )
  }, 60_000)

  test('parts of other versions are not mixed', async () => {
    await withDaemons([1, 1], async ({ daemons }) => {
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      await leader.register({ a: u8(8, 1) }, { version: 'v2' })
      await follower.register({ b: u8(8, 1) }, { version: 'v1' })
      const { failure } = await outcomeOf(leader.updates.start(NAME, REQUEST).done)
      expect(failure).toMatchObject({ code: 'checkpoint_invalid', phase: 'gather' })
      expect(failure?.message).toContain('as version v2 by node 0 and as version v1 by node 1')
    })
  }, 60_000)

  test('what two daemons have of one name is taken when both call it the same version', async () => {
    await withDaemons([1, 1], async ({ daemons, engine }) => {
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      const one = await engine()
      const engines = [{ url: one.url, ranks: [0] }]
      await leader.register({ w: u8(8, 1), a: u8(8, 2) })
      await follower.register({ w: u8(8, 3) })
      const { failure } = await outcomeOf(leader.updates.start(NAME, { ...REQUEST, engines }).done)
      expect(failure).toMatchObject({ code: 'checkpoint_invalid', phase: 'gather', tensor: 'w' })
      expect(failure?.message).toContain('without a version by node 0 and node 1')
      const tensors = { w: u8(8, 3), a: u8(8, 2) }
      await leader.register(tensors, { version: 'v1' })
      await follower.register({ w: u8(8, 3) }, { version: 'v1' })
      await leader.updates.start(NAME, { ...REQUEST, engines }).done
      await requireWeights(one, tensors)
    })
  }, 60_000)

  test('tensors of one name that differ are told with both daemons', async () => {
    await withDaemons([1, 1], async ({ daemons }) => {
      const [leader, follower] = daemons as [TestDaemon, TestDaemon]
      await leader.register({ w: u8(8, 1) })
      await follower.register({ w: u8(9, 1) })
      const { failure } = await outcomeOf(leader.updates.start(NAME, REQUEST).done)
      expect(failure).toMatchObject({ code: 'tensor_conflict', phase: 'gather' })
      expect(failure?.message).toMatch(/node 0.*node 1|node 1.*node 0/)
    })
  }, 60_000)

  test('some ranks read what daemons without a rank in the update hold', async () => {
    await withDaemons(
      [1, 2, 1],
      async ({ daemons, engine }) => {
        const [leader, follower, owner] = daemons as [TestDaemon, TestDaemon, TestDaemon]
        const joined = await engine({ tensorParallelSize: 2 })
        const mine = tensorsOf(10, 60_000, 11)
        const theirs = renamed(tensorsOf(10, 40_000, 12))
        const near = renamed(renamed(tensorsOf(4, 20_000, 13)))
        await leader.register(mine)
        await owner.register(theirs)
        await follower.register(near)
        const engines = [{ url: joined.url, ranks: [1, 2] }]
        for (const ranks of [[1, 2], [2, 1], []]) {
          const report = await leader.updates.start(NAME, { ...REQUEST, engines, ranks }).done
          expect(report).toMatchObject({ mode: 'pipelined', ranks: ranks.length || 4 })
          const away = ranks.length > 0 ? 10 * 60_000 + 10 * 40_000 + 2 * 90 : undefined
          expect(report.p2p?.bytes).toBe(away)
          await requireWeights(joined, { ...mine, ...theirs, ...near })
        }
      },
      SMALL_BUCKETS,
    )
  }, 60_000)

  test('a reader whose Worker dies leaves nothing behind', async () => {
    const run = async ({ daemons, engine }: Daemons) => {
      const [leader, owner] = daemons as [TestDaemon, TestDaemon]
      const tensors = tensorsOf(4, 60_000, 31)
      await owner.register(tensors)
      const engines = [{ url: (await engine()).url, ranks: [0] }]
      for (const _ of [1, 2]) {
        await leader.updates.start(NAME, { ...REQUEST, engines, ranks: [0] }).done
        // what it has opened is counted when the daemons have ended
        const [own] = leader.updates.leader!.ranks.links
        ;(own as RankLink).giveUp(0)
      }
    }
    await withDaemons([1, 1], run, {}, 2)
  }, 60_000)
})
