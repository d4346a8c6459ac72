import { expect, test } from 'bun:test'
import type { DirectPlan } from '@ckpt/core'
import type { H2dPiece, Library } from '@ckpt/cuda'
import { copyOrder, DirectCopies, groupCount } from './direct-copies.ts'
import type { EngineMemory } from './engine-memory.ts'

const SIGNAL = 9
const STREAM = 7
const ROWS_STREAM = 8
const STAGING = 1000
const BUFFERS = [Uint32Array.of(50, 51)]
const TABLE = {
  names: [],
  dtypes: new Uint8Array(0),
  shapes: [],
  bytes: new Float64Array(0),
  owners: new Uint32Array(0),
  offsets: new Float64Array(0),
}
const LAYOUT = {
  table: TABLE,
  sources: [{ starts: Float64Array.of(0, 1000), bytes: Float64Array.of(1000, 500) }],
}

function row(source: number, destination: number, width: number) {
  const pitches = { sourcePitch: width, destinationPitch: width }
  return { owner: 0, source, allocation: 0, destination, width, height: 1, ...pitches }
}

function piece(
  memory: number,
  memoryOffset: number,
  buffer: number,
  bufferOffset: number,
  width: number,
): H2dPiece {
  const pitches = { memoryPitch: width, bufferPitch: width }
  return { memory, memoryOffset, buffer, bufferOffset, ...pitches, width, height: 1 }
}

/** A library that only notes what it is told; events complete when the test says so. */
function play(plan: DirectPlan, isOpen = (_allocation: number) => true) {
  const calls: unknown[] = []
  const complete = new Set<number>()
  let events = 0
  const library = {
    eventRecord: () => {},
    eventNotify: (event: number, signal: number) => calls.push(['notify', event, signal]),
    eventQuery: (event: number) => complete.has(event),
    copyH2dBatch: (...call: unknown[]) => calls.push(['copies', ...call]),
    bufferGather: (to: number, pieces: unknown) => calls.push(['gather', to, pieces]),
  } as unknown as Library
  const memory = {
    stream: STREAM,
    rowsStream: ROWS_STREAM,
    has: isOpen,
    memory: (allocation: number) => 100 + allocation,
    event: () => ++events,
    reuse: () => {},
  } as unknown as EngineMemory
  const staging = (bytes: number) => STAGING + bytes
  const target = { library, signal: SIGNAL, plan, layout: LAYOUT, buffers: BUFFERS, staging }
  return { copies: new DirectCopies(target, memory), calls, complete }
}

const NOTHING = { bytes: 0, pieces: [], copies: [] }

test('copies rows out of the right buffer, then what is gathered', () => {
  const rows = { ...row(1000, 64, 8), sourcePitch: 16, destinationPitch: 32, height: 4 }
  const small = { owner: 0, source: 1400, sourcePitch: 4, offset: 0, width: 4, height: 1 }
  const staging = {
    bytes: 8,
    pieces: [small, { ...small, source: 900, offset: 4 }],
    copies: [{ offset: 0, allocation: 1, destination: 256, bytes: 8 }],
  }
  const plan = { copies: [row(10, 0, 20), rows], groups: [0, 2], staging, fetched: [], bytes: 60 }
  const { copies, calls, complete } = play(plan)
  copies.enqueue(copyOrder(plan, LAYOUT).count, 1)
  const pitches = { memoryPitch: 32, bufferPitch: 16 }
  const ofRows = { ...piece(100, 64, 51, 0, 8), ...pitches, height: 4 }
  const rest = { dstPitch: 4, srcPitch: 4, width: 4, height: 1 }
  expect(calls).toEqual([
    ['copies', STREAM, [piece(100, 0, 50, 10, 20)]],
    ['copies', ROWS_STREAM, [ofRows]],
    ['notify', 1, SIGNAL],
    ['notify', 2, SIGNAL],
    [
      'gather',
      STAGING + 8,
      [
        { srcBuffer: 51, srcOffset: 400, dstOffset: 0, ...rest },
        { srcBuffer: 50, srcOffset: 900, dstOffset: 4, ...rest },
      ],
    ],
    ['copies', STREAM, [piece(101, 256, STAGING + 8, 0, 8)]],
    ['notify', 3, SIGNAL],
  ])
  expect(copies.done).toBe(false)
  complete.add(1)
  copies.takeComplete(2)
  expect([copies.complete, copies.done]).toEqual([0, false])
  complete.add(2)
  copies.takeComplete(3)
  expect([copies.complete, copies.done]).toEqual([1, false])
  complete.add(3)
  copies.takeComplete(4)
  expect([copies.complete, copies.done]).toEqual([2, true])
  expect([...copies.queue.h2d.take(5)]).toEqual([1, 4])
})

test('only so much is on its way at a time, and only what was read', () => {
  const many = Array.from({ length: 8 }, (_, i) => row(i * 100, i * 100, 100))
  const plan = {
    copies: many,
    groups: [0, 1, 2, 3, 4, 5, 6, 7, 8],
    staging: NOTHING,
    fetched: [],
    bytes: 800,
  }
  const { copies, calls, complete } = play(plan)
  const copied = () => calls.filter((call) => (call as unknown[])[0] === 'copies').length
  copies.enqueue(2, 0)
  expect(copied()).toBe(2)
  copies.enqueue(9, 0)
  expect(copied()).toBe(6)
  complete.add(1)
  copies.takeComplete(0)
  copies.enqueue(9, 0)
  expect([copies.complete, copied()]).toEqual([1, 7])
  for (let event = 2; event <= 8; event++) complete.add(event)
  copies.takeComplete(0)
  copies.enqueue(8, 0)
  copies.takeComplete(0)
  // what is gathered comes from anywhere: all must have been read
  expect([copied(), copies.complete, copies.done]).toEqual([8, 8, false])
  copies.enqueue(9, 0)
  complete.add(9)
  copies.takeComplete(0)
  expect([copies.complete, groupCount(plan), copies.done]).toEqual([9, 9, true])
})

/** In the source buffer, of each copy. */
function offsetsOf(calls: readonly unknown[]): number[] {
  return calls.flatMap((call) => {
    const [kind, , pieces] = call as [string, number, H2dPiece[]]
    return kind === 'copies' ? pieces.map(({ bufferOffset }) => bufferOffset) : []
  })
}

test('what goes into memory that is open goes first, what is gathered last', () => {
  const into = (allocation: number, i: number) => ({ ...row(i * 100, 0, 100), allocation })
  const plan = {
    copies: [into(0, 0), into(1, 1), into(0, 2), into(2, 3), into(1, 4)],
    groups: [0, 1, 2, 3, 4, 5],
    staging: NOTHING,
    fetched: [],
    bytes: 500,
  }
  const open = new Set([1])
  const { copies, calls } = play(plan, (allocation) => open.has(allocation))
  copies.enqueue(1, 0)
  // nothing else is readable
  expect(offsetsOf(calls)).toEqual([0])
  copies.enqueue(4, 0)
  expect(offsetsOf(calls)).toEqual([0, 100, 200, 300])
  const all = play(plan, (allocation) => open.has(allocation))
  all.copies.enqueue(6, 0)
  expect(offsetsOf(all.calls)).toEqual([100, 400, 0, 200, 300])
  expect([groupCount(plan), all.copies.done]).toEqual([6, false])
})

test('the order in which bytes are waited for', () => {
  const last = { ...row(20, 0, 8), sourcePitch: 16, destinationPitch: 8, height: 3 }
  const plan = {
    copies: [row(10, 0, 20), last],
    groups: [0, 2],
    staging: NOTHING,
    fetched: [],
    bytes: 44,
  }
  const { count, source } = copyOrder(plan, LAYOUT)
  expect(Array.from({ length: count }, (_, part) => source(part))).toEqual([
    { owner: 0, end: 30 },
    { owner: 0, end: 60 },
    { owner: 0, end: Number.POSITIVE_INFINITY },
  ])
})
