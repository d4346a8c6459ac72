import { expect, test } from 'bun:test'
import { openLibrary } from '@ckpt/cuda'
import { endStreams, freeBuffers } from './left-behind.ts'

test('streams end when nothing is left in them, and take nothing more', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  const streams = [library.streamCreate(0), library.streamCreate(0)]
  const [memory, buffer] = [library.memoryAlloc(0, 4096), library.bufferAlloc(4096, 0)]
  const [stream] = streams as [number]
  const copy = () => library.copyH2d(stream, memory, 0, buffer, 0, 4096)
  copy()
  expect(endStreams(library, streams, 5000)).toBe(true)
  expect(copy).toThrow('no live stream handle')
  // by whoever it was asked before
  expect(endStreams(library, streams, 5000)).toBe(true)
  library.memoryFree(memory)
  library.bufferFree(buffer)
  expect(library.liveObjects()).toBe(before)
})

test('none of them ends while one has something left', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const [idle, busy] = [library.streamCreate(0), library.streamCreate(0)]
  const group = library.groupCreate(2)
  const memory = library.memoryAlloc(0, 4096)
  // its broadcast waits for the other member
  library.groupJoin(group, 0, busy, memory)
  library.groupBroadcast(group, 0, 0, 0, 4096)
  expect(endStreams(library, [idle, busy], 20)).toBe(false)
  library.streamSync(idle, 0, 1000)
  library.groupDestroy(group)
  expect(endStreams(library, [idle, busy], 5000)).toBe(true)
  library.memoryFree(memory)
})

test('buffers are freed though some are gone', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  const [gone, there] = [library.bufferAlloc(4096, 0), library.bufferAlloc(4096, 0)]
  library.bufferFree(gone)
  freeBuffers(library, [gone, there])
  expect(library.liveObjects()).toBe(before)
})
