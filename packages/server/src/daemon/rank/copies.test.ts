import { expect, test } from 'bun:test'
import { PROGRESS_BYTES } from './messages.ts'
import { type CopyTarget, RingCopies } from './copies.ts'
import { bufferAt } from './source-buffer.ts'

const SOURCE = { starts: Float64Array.of(0, 100, 300), bytes: Float64Array.of(100, 50, 10) }

test('the buffer that holds a range of the source space', () => {
  expect(bufferAt(SOURCE, 0, 100)).toBe(0)
  expect(bufferAt(SOURCE, 99, 1)).toBe(0)
  expect(bufferAt(SOURCE, 100, 50)).toBe(1)
  expect(bufferAt(SOURCE, 300, 10)).toBe(2)
})

test('a range that crosses buffers, or lies in a gap, is a mistake of the plan', () => {
  for (const [offset, bytes] of [
    [99, 2],
    [149, 2],
    [200, 1],
    [305, 6],
    [400, 1],
  ] as const) {
    expect(() => bufferAt(SOURCE, offset, bytes)).toThrow('no source buffer')
  }
  const empty = { starts: new Float64Array(0), bytes: new Float64Array(0) }
  expect(() => bufferAt(empty, 0, 1)).toThrow('no source buffer')
})

test('of a root in another process some buckets are launched ahead, and others as those are complete', () => {
  const buckets = 100
  const launched: number[] = []
  const complete = new Set<number>()
  let events = 0
  const progress = new SharedArrayBuffer(PROGRESS_BYTES)
  const told = { member: 0, peers: [{ progress, signal: 0 }, null] }
  const broadcast = (_root: number, offset: number) => launched.push(offset)
  const library = {
    eventRecord() {},
    eventNotify() {},
    eventQuery: (event: number) => complete.has(event),
  }
  const plan = {
    segmentRing: Float64Array.from({ length: buckets }, (_, at) => at * 4096),
    segmentSize: new Float64Array(buckets).fill(10),
  }
  const copies = new RingCopies({
    library,
    ring: { event: () => events++, reuse() {}, collectiveStream: 1 },
    held: { plan },
    collective: { told, isCommunicator: true, broadcast },
    ranks: [0, 1],
  } as unknown as CopyTarget)
  for (let bucket = 0; bucket < buckets; bucket++) {
    copies.broadcastSegment(bucket, 1)
    copies.record(bucket)
  }
  const ahead = launched.length
  expect(ahead).toBeGreaterThan(8)
  expect(ahead).toBeLessThan(64)
  const taken: number[] = []
  for (let event = 0; event < buckets; event++) {
    complete.add(event)
    taken.push(...copies.takeComplete(0))
    expect(launched).toHaveLength(Math.min(buckets, ahead + event + 1))
  }
  expect(taken).toEqual([...Array(buckets).keys()])
})
