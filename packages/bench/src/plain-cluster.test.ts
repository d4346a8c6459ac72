import { expect, setDefaultTimeout, test } from 'bun:test'
import { MIB } from './bench.ts'
import { PlainChild, PlainCluster } from './plain-cluster.ts'

setDefaultTimeout(60_000)

test('processes meet, and do what they are asked for', async () => {
  await using stack = new AsyncDisposableStack()
  const plain = await PlainCluster.start(stack, 'host', 2, {})
  const sizes = { h2d: 0, broadcast: 2 * MIB, reload: 0, pieceBytes: MIB, ringBytes: 2 * MIB }
  const { broadcast, reload } = await plain.run(sizes)
  expect(broadcast).toBeGreaterThan(0)
  expect(reload).toBe(0)
})

test('one that does not answer in time is killed, and what it was asked is said', async () => {
  const child = new PlainChild('host', {})
  try {
    const id = (await child.ask({ type: 'id', members: 2 })) as string
    // nobody else comes
    const meeting = child.ask({ type: 'meet', id, members: 2, member: 0 }, 100)
    await expect(meeting).rejects.toThrow(
      'member 0 of 2 is to meet the others: no answer of a process in 0.1 s',
    )
    await expect(child.ask({ type: 'id', members: 2 })).rejects.toThrow()
  } finally {
    await child.end()
  }
})
