import { afterEach, beforeEach, expect, test } from 'bun:test'
import { type Library, openLibrary, SIGNAL_ABORT, selectDevices } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { failure } from '../registry/testing/fixture.ts'
import { KeptCommunicator } from './kept-communicator.ts'

let library: Library
let signal: number
let objects: number

beforeEach(() => {
  library = openLibrary(selectDevices('host:1', 1).library)
  objects = library.liveObjects()
  signal = library.signalCreate()
})

afterEach(() => {
  library.signalDestroy(signal)
  // whatever a test does
  expect(library.liveObjects()).toBe(objects)
})

function meeting(members: number, limitMs: number, id = library.communicatorId(members).toHex()) {
  return { id, members, member: 0, sharers: members, deadlineMs: clockMs() + limitMs }
}

test('one is kept as long as the id is the same, and only one', () => {
  const kept = new KeptCommunicator(library, 0)
  const first = meeting(1, 1000)
  const handle = kept.take(first, signal)
  expect(kept.take({ ...first, deadlineMs: 0 }, signal)).toBe(handle)
  const before = library.liveObjects()
  expect(kept.take(meeting(1, 1000), signal)).not.toBe(handle)
  expect(library.liveObjects()).toBe(before)
  expect(() => library.communicatorAbort(handle)).toThrow('no live communicator handle')
  kept.drop()
  kept.drop()
})

test('members that do not come are waited for until the deadline', async () => {
  const kept = new KeptCommunicator(library, 0)
  const startMs = clockMs()
  await failure(() => kept.take(meeting(2, 150), signal), 'update_timeout', 'other members')
  expect(clockMs() - startMs).toBeGreaterThanOrEqual(149)
  kept.drop()
})

test('an abort ends that, and what was kept before is dropped', async () => {
  const kept = new KeptCommunicator(library, 0)
  const handle = kept.take(meeting(1, 1000), signal)
  library.signalRaise(signal, SIGNAL_ABORT)
  await failure(() => kept.take(meeting(2, 60_000), signal), 'aborted', 'other members')
  expect(() => library.communicatorAbort(handle)).toThrow('no live communicator handle')
})
