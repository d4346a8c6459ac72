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

test('of a root in another process nobody waits for the bytes, but for what comes before', () => {
  const copied = [0, Number.POSITIVE_INFINITY]
  const order = new BroadcastOrder((root) => copied[root] as number)
  const done: string[] = []
  order.broadcast(1, 3, () => done.push('theirs'))
  order.broadcast(0, 1, () => done.push('mine'))
  order.broadcast(1, 1, () => done.push('theirs again'))
  expect(done).toEqual(['theirs'])
  copied[0] = 1
  order.goOn()
  expect(done).toEqual(['theirs', 'mine', 'theirs again'])
})

test('no more are launched than there is room for, and what comes behind one is not held by it', () => {
  let room = 1
  const order = new BroadcastOrder(
    () => Number.POSITIVE_INFINITY,
    () => room > 0,
  )
  const done: string[] = []
  for (const bucket of [0, 1]) {
    order.broadcast(0, 1, () => done.push(`broadcast ${bucket}`))
    order.behind(() => {
      room--
      done.push(`event ${bucket}`)
    })
  }
  expect(done).toEqual(['broadcast 0', 'event 0'])
  order.goOn()
  expect(done).toHaveLength(2)
  room++
  order.goOn()
  expect(done.slice(2)).toEqual(['broadcast 1', 'event 1'])
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
