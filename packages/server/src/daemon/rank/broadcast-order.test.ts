import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { BroadcastOrder } from './broadcast-order.ts'

test('a broadcast waits for its bytes, and everything behind it with it', () => {
  const copied = [1, 0]
  const order = new BroadcastOrder((root) => copied[root] ?? 0)
  const done: string[] = []
  order.broadcast(0, 1, () => done.push('mine'))
  order.broadcast(1, 2, () => done.push('theirs'))
  order.behind(() => done.push('event'))
  order.broadcast(0, 1, () => done.push('mine again'))
  order.broadcast(1, 1, () => done.push('theirs again'))
  expect(done).toEqual(['mine'])
  copied[1] = 1
  order.goOn()
  expect(done).toEqual(['mine'])
  copied[0] = 2
  copied[1] = 2
  order.goOn()
  expect(done).toEqual(['mine', 'theirs', 'event', 'mine again'])
  order.goOn()
  copied[1] = 3
  order.goOn()
  expect(done.at(-1)).toBe('theirs again')
})

test('whenever bytes come, each is enqueued once, in order, and none before its bytes', () => {
  const calls = fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 60 })
  const arrivals = fc.infiniteStream(fc.integer({ min: 0, max: 3 }))
  fc.assert(
    fc.property(calls, arrivals, (roots, coming) => {
      const copied = [0, 0, 0, 0]
      const order = new BroadcastOrder((root) => copied[root] as number)
      const done: number[] = []
      const seen = [0, 0, 0, 0]
      for (const [call, root] of roots.entries()) {
        order.broadcast(root, 1, () => {
          done.push(call)
          seen[root]!++
          expect(copied[root]).toBeGreaterThanOrEqual(seen[root]!)
        })
        const [root_] = coming.take(1)
        copied[root_ as number]!++
        order.goOn()
      }
      for (const root of roots) copied[root]!++
      order.goOn()
      expect(done).toEqual([...roots.keys()])
    }),
  )
})
